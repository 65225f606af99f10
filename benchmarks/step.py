"""Times a step of training and of inference against the same model on PyTorch Geometric, on a GPU or one CPU thread.

    python benchmarks/step.py [--device cuda] [--patches 250 1000 4000 12000 50000] [--alone 100000] [--rounds 7]

The peer is what a user of PyTorch Geometric would write: its GATv2Conv, torch's dropout, one bag a step, AdamW with
its default options. It has the package's losses and memory, so the difference is that of slide encoder and optimiser.
Memory is the peak of a process above model, gradients, optimiser and bag. "At most" is the speed-up if everything but
the slide encoder's float32 matrix products took no time. Where the CPU has bfloat16, training uses it by default, and a
column has that time. Beyond `MAX_UNTILED_PATCHES` patches the package computes a bag in tiles, which costs time and
bounds memory. Bags of `--alone` patches are too large for the peer.

On a GPU, times are wall-clock times until the GPU has finished; "busy" is the part in which it computes, by PyTorch's
profiler; the peer in bfloat16 runs under autocast.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.polynomial import Polynomial
from published import published
from table import interleaved, machine, print_table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch_geometric.nn import GATv2Conv

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.batches.tiles import MAX_UNTILED_PATCHES
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig, TrainConfig
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.model.kernels.linear import Linear, multiplies_bf16
from momkd_ray.model.momkd import MoMKD
from momkd_ray.train.collectives import SingleProcess
from momkd_ray.train.cuda_graphs import CudaGraphCache
from momkd_ray.train.step import Stepper

WIDTH, GENES, NEIGHBORS = 1536, 768, 8
WHATS = ("training", "inference")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEVERAL = {"cpu": [(250, 8)], "cuda": [(250, 8), (4000, 8)]}  # patches, and bags in one training step


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default=DEVICE.type)
    arguments.add_argument("--patches", type=int, nargs="+", default=[250, 1000, 4000, 12_000, 50_000])
    arguments.add_argument("--alone", type=int, nargs="*", default=[100_000])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--peak", nargs=3, metavar=("WHO", "WHAT", "PATCHES"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    use(options.device)
    if options.peak:
        who, what, patches = options.peak
        print(*one_step(who, what, int(patches)))
        return
    print(machine())
    for what in WHATS:
        rows, ours, sizes = [], [], [(patches, 1) for patches in options.patches]
        if what == "training":
            sizes = SEVERAL[DEVICE.type] + sizes
        for patches, bags in sizes:
            both = ways(what, patches, bags)
            rounds = options.rounds if patches < 10_000 or DEVICE.type == "cuda" else 3
            seconds = interleaved(both, rounds, clock_of(DEVICE))
            if DEVICE.type == "cuda":
                seconds |= {f"{name}, busy": busy(way) for name, way in both.items()}
            rows.append(row_of(what, patches, bags, seconds))
            if bags == 1:
                ours.append(seconds["ours"])
        clock = "one thread, CPU seconds" if DEVICE.type == "cpu" else "seconds"
        print_table(
            f"One step of {what}, float32 if not said, {clock}, medians of turns", [*rows[0]], map(dict.values, rows)
        )
        whole = [(p, s) for p, s in zip(options.patches, ours, strict=True) if p <= MAX_UNTILED_PATCHES[DEVICE.type]]
        if len(whole) > 2:
            print(linearity(*map(list, zip(*whole, strict=True))))
    if options.alone:
        large = [(patches, what, *in_process("ours", what, patches)) for patches in options.alone for what in WHATS]
        print_table(
            "One step on a bag " + ("in tiles" if options.alone[0] > MAX_UNTILED_PATCHES[DEVICE.type] else "whole"),
            ["patches", "", "ours, s", "us a patch", "peak MB"],
            [[f"{p:,}", what, f"{s:.3g}", f"{s / p * 1e6:.3g}", f"{peak / 1e6:.0f}"] for p, what, peak, s in large],
        )


def use(device: str) -> None:
    """Sets the device of all measurements."""
    global DEVICE
    DEVICE = torch.device(device)
    torch.set_num_threads(1)


def clock_of(device: torch.device) -> Callable[[], float]:
    """A clock of CPU seconds, which exclude other processes; for a GPU, of wall-clock seconds until it has finished."""
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def busy(way: Callable[[], object]) -> float:
    """Seconds in which the GPU computes or copies."""
    torch.cuda.synchronize(DEVICE)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        way()
        torch.cuda.synchronize(DEVICE)
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1e6


def ways(what: str, patches: int, bags: int) -> dict[str, Callable[[], object]]:
    """The package and the peer on the same bags with the same weights, both warmed up."""
    batches = [made_bag(patches, seed) for seed in range(bags)]
    apart = [batch_of([bag]) for bag in batches]
    together = batch_of(batches)
    ours, peer = stepper("fp32"), Peer()
    peer.model.load_state_dict(ours.model.state_dict())
    for_peer = [peer.ready(batch) for batch in apart]
    if what == "inference":
        ours.model.eval(), peer.model.eval()
        theirs = peer.model.predict(for_peer[0])[0]
        torch.testing.assert_close(ours.model.predict(apart[0])[0], theirs, atol=1e-5, rtol=1e-5)
        predicted = predictor(ours.model)
        both = {
            "peer": lambda: peer.model.predict(for_peer[0]),
            "ours": lambda: predicted(apart[0]),
            "products": products(patches, training=False),
        }
        return warmed_up(both)
    both = {
        "peer": lambda: [peer.step(batch) for batch in for_peer],
        "ours": lambda: ours.step([together], bags),
        "products": products(bags * patches, training=True),
    }
    if multiplies_bf16(DEVICE):
        half = stepper("bf16")
        both["ours in bf16"] = lambda: half.step([together], bags)
    if DEVICE.type == "cuda":
        half_peer = Peer()
        half_ready = [half_peer.ready(batch) for batch in apart]
        both["peer in bf16"] = lambda: [half_peer.step(batch, torch.bfloat16) for batch in half_ready]
    return warmed_up(both)


def warmed_up(both: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    for way in both.values():
        for _ in range(2 if DEVICE.type == "cuda" else 1):  # the CUDA graph is captured the second time
            way()
    return both


def predictor(model: MoMKD) -> Callable[[BagBatch], Tensor]:
    """Predicts as validation does."""
    return CudaGraphCache(lambda batch: model.predict(batch)[0], DEVICE, model)


def stepper(precision: str) -> Stepper:
    return Stepper(made_model(), train_config(precision=precision), SingleProcess(), DEVICE)


def products(patches: int, *, training: bool, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """The matrix products of the slide encoder and the patches' projection, forward and, in training, back."""
    config = model_config()
    x_PD, h_PH = (torch.randn(patches, width, device=DEVICE).to(dtype) for width in (WIDTH, config.hidden))
    z_PS, inner_PH = (torch.randn(patches, width, device=DEVICE) for width in (config.shared, config.hidden))
    from_x, from_h, to_shared = (
        Linear(WIDTH, config.hidden, device=DEVICE),
        Linear(config.hidden, config.hidden, device=DEVICE),
        nn.Linear(config.hidden, config.shared, device=DEVICE),
    )

    def forward() -> None:
        for _ in range(3):
            from_x(x_PD)
        for _ in range(2):
            from_h(h_PH)
        to_shared(inner_PH)

    def backward() -> None:
        for _ in range(3):  # the features need no gradient
            h_PH.T @ x_PD
        for _ in range(2):
            h_PH.T @ h_PH
            from_h(h_PH)  # a product of the same size as the backward pass's
        z_PS.T @ inner_PH
        z_PS @ to_shared.weight

    @torch.no_grad()
    def all_of_them() -> None:
        forward()
        if training:
            backward()

    return all_of_them


def row_of(what: str, patches: int, bags: int, seconds: dict[str, float]) -> dict[str, str]:
    """One row of the table, by column name."""

    def cell(name: str) -> str:
        of_gpu = seconds.get(f"{name}, busy")
        return f"{seconds[name]:.4f}" + ("" if of_gpu is None else f" (busy {of_gpu:.4f})")

    def against(name: str, than: str = "peer") -> str:
        return f"{seconds[than] / seconds[name]:.2f}x"

    cells = {"bags x patches": f"{bags} x {patches:,}", "PyTorch Geometric, s": cell("peer")}
    cells |= {"ours, s": cell("ours"), "speed-up": against("ours")}
    peaks = [in_process(who, what, patches)[0] for who in ("peer", "ours")] if bags == 1 else []
    names = ("peak MB", "ours", "share")
    shown = [*(f"{peak / 1e6:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.0%}"] if peaks else [""] * 3
    cells |= dict(zip(names, shown, strict=True))
    cells |= {"matrix products alone, s": cell("products"), "so at most": against("products")}
    if "ours in bf16" in seconds:
        cells |= {"ours in bf16, s": cell("ours in bf16"), "speed-up of it": against("ours in bf16")}
    if "peer in bf16" in seconds:
        cells |= {"PyTorch Geometric in bf16, s": cell("peer in bf16")}
        cells |= {"ours in bf16 against it": against("ours in bf16", than="peer in bf16")}
    return cells


def in_process(who: str, what: str, patches: int) -> tuple[float, float]:
    """`one_step`; for the CPU in a process of its own."""
    if DEVICE.type == "cuda":
        return one_step(who, what, patches)
    command = [sys.executable, __file__, "--device", "cpu", "--peak", who, what, str(patches)]
    peak, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(peak), float(seconds)


def linearity(patches: list[int], seconds: list[float]) -> str:
    """Fits a line to the times, weighted for relative errors, and returns it with its R2."""
    x, y = np.array(patches, float), np.array(seconds)
    constant, slope = Polynomial.fit(x, y, 1, w=1 / y).convert().coef
    left = ((y - constant - slope * x) ** 2).sum()
    r2 = 1 - left / ((y - y.mean()) ** 2).sum()
    return f"Ours: {constant * 1e3:.1f} ms + {slope * 1e6:.1f} us a patch, R2 = {r2:.4f}"


class PlainEncoder(nn.Module):
    """The slide encoder as a user of PyTorch Geometric would write it, with the package's parameter names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, self.dropout = config.hidden, config.dropout
        options = {"heads": config.heads, "dropout": config.dropout}
        self.gat1 = GATv2Conv(WIDTH, hidden // config.heads, **options)
        self.gat2 = GATv2Conv(hidden, hidden // config.heads, **options)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.residual1 = nn.Linear(WIDTH, hidden)
        self.edge_index_of: dict[str, Tensor] = {}

    def dropout_layers(self, batch: BagBatch) -> dict[str, object]:
        return {}  # it draws its dropout by itself

    def forward(self, batch: BagBatch, masks: object) -> Tensor:
        edge_index = self.edge_index_of[batch.bag_ids[0]]
        x = batch.features_PD
        h1 = F.dropout(F.elu(self.norm1(self.gat1(x, edge_index))), self.dropout, self.training) + self.residual1(x)
        h2 = F.dropout(F.elu(self.norm2(self.gat2(h1, edge_index))), self.dropout, self.training) + h1
        return torch.maximum(h1, h2)


class Peer:
    """The peer's model and optimiser; its edges are prepared outside of the timed part."""

    def __init__(self) -> None:
        self.model = made_model()
        self.encoder = PlainEncoder(self.model.model_config).to(DEVICE)
        self.model.slide_encoder = self.encoder
        self.config = train_config()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.config.lr, weight_decay=1e-4)

    def ready(self, batch: BagBatch) -> BagBatch:
        edge_index = batch.graph.edge_index_2M
        self.encoder.edge_index_of[batch.bag_ids[0]] = edge_index[:, edge_index[0] != edge_index[1]]
        return replace(batch, tiles=())  # the peer has no tiles

    def step(self, batch: BagBatch, dtype: torch.dtype = torch.float32) -> None:
        self.model.train()
        self.optimiser.zero_grad()
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            output = self.model(batch)
        self.model.losses(output, batch)["total"].sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self.model.memory.update(*self.model.evidence(output, batch), 1)


def one_step(who: str, what: str, patches: int) -> tuple[int, float]:
    """Returns the peak memory of a step above what was held before it, in bytes, and its seconds."""
    small, large = (batch_of([made_bag(n, seed)]) for seed, n in enumerate((40, patches)))
    ours, peer = stepper("fp32"), Peer()
    if who == "peer":
        small, large = peer.ready(small), peer.ready(large)
    if what == "inference":
        model = (ours if who == "ours" else peer).model.eval()
        step: Callable[[BagBatch], object] = predictor(model) if who == "ours" else model.predict
    else:
        step = peer.step if who == "peer" else lambda batch: ours.step([batch], 1)
    step(small)  # so that kernels are compiled and gradients and the optimiser's state exist before
    clock = clock_of(DEVICE)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats(DEVICE)
        before = torch.cuda.memory_allocated(DEVICE)
        for _ in range(3):  # warm-up, capture, replay
            began = clock()
            step(large)
            seconds = clock() - began
        return torch.cuda.max_memory_allocated(DEVICE) - before, seconds
    Path("/proc/self/clear_refs").write_text("5")
    before, began = status("VmRSS"), clock()
    step(large)
    return status("VmHWM") - before, clock() - began


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def made_model() -> MoMKD:
    torch.manual_seed(0)
    recipe = published()
    memory, loss = MemoryConfig.model_validate(recipe["memory"]), LossConfig.model_validate(recipe["loss"])
    return MoMKD(model_config(), memory, loss, width=WIDTH, genes=GENES).to(DEVICE)


def model_config() -> ModelConfig:
    return ModelConfig.model_validate(published()["model"])


def train_config(**changes: str) -> TrainConfig:
    return TrainConfig.model_validate(published(train=changes)["train"])


def made_bag(patches: int, seed: int) -> Bag:
    """A bag whose patches fill a square of the grid, as compact tissue does."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(patches**0.5))
    coords_P2 = np.stack(np.divmod(np.arange(patches), side), 1).astype(np.int32) * 256
    features_PD = rng.standard_normal((patches, WIDTH), dtype=np.float32)
    return Bag(f"{patches}-{seed}", features_PD, coords_P2, *knn_graph(coords_P2, NEIGHBORS), {})


def batch_of(bags: list[Bag]) -> BagBatch:
    omics = [np.random.default_rng(b).standard_normal(GENES) for b in range(len(bags))]
    return collate(bags, [b % 2 for b in range(len(bags))], omics, list(range(len(bags))), DEVICE).to(DEVICE)


if __name__ == "__main__":
    main()
