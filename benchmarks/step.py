"""A step of training and of inference against the same model on PyTorch Geometric, on one thread of the CPU.

    python benchmarks/step.py [--patches 250 1000 4000 12000 50000] [--alone 100000] [--rounds 7]

The peer is what a user of PyTorch Geometric would write: its GATv2Conv, torch's dropout, one bag a step, AdamW as it
comes. It has our losses and our memory, so what is told apart is the slide encoder and the optimiser. Memory is what
a process holds at its peak above model, gradients, optimiser and bag. The floor is the slide encoder's float32 products
alone, by the library that we take for them: "at most" is the speed-up if all else took no time. Where the CPU has
bfloat16, training multiplies in it unless told otherwise, and a column tells how fast that is. Beyond `WHOLE` patches
ours works in tiles, which costs time and bounds memory. Bags of `--alone` patches are too large for the peer.
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
from table import interleaved, machine, print_table
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATv2Conv

from momkd_ray.bags.batch import BagBatch, collate
from momkd_ray.bags.graph import knn_graph
from momkd_ray.bags.readers import Bag
from momkd_ray.bags.tiles import WHOLE
from momkd_ray.model.kernels.products import Linear, multiplies_bf16
from momkd_ray.model.momkd import MoMKD
from momkd_ray.sections import LossConfig, MemoryConfig, ModelConfig, TrainConfig
from momkd_ray.train.step import Stepper
from momkd_ray.train.sync import Alone

WIDTH, GENES, NEIGHBORS = 1536, 768, 8
WHATS = ("training", "inference")
DEVICE = torch.device("cpu")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--patches", type=int, nargs="+", default=[250, 1000, 4000, 12_000, 50_000])
    arguments.add_argument("--alone", type=int, nargs="*", default=[100_000])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--peak", nargs=3, metavar=("WHO", "WHAT", "PATCHES"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        who, what, patches = options.peak
        print(*one_step(who, what, int(patches)))
        return
    print(machine())
    for what in WHATS:
        rows, ours, sizes = [], [], [(patches, 1) for patches in options.patches]
        if what == "training":
            sizes.insert(0, (250, 8))
        for patches, bags in sizes:
            seconds = interleaved(
                ways(what, patches, bags), options.rounds if patches < 10_000 else 3, time.process_time
            )
            rows.append(row_of(what, patches, bags, seconds))
            if bags == 1:
                ours.append(seconds["ours"])
        print_table(
            f"One step of {what}, float32 if not said, one thread, CPU seconds, medians of turns",
            [
                "bags x patches",
                "PyTorch Geometric, s",
                "ours, s",
                "speed-up",
                "peak MB",
                "ours",
                "share",
                "matrix products alone, s",
                "so at most",
                *(["ours in bf16, s", "speed-up"] if "bf16" in seconds else []),
            ],
            rows,
        )
        whole = [(p, s) for p, s in zip(options.patches, ours, strict=True) if p <= WHOLE["cpu"]]
        if len(whole) > 2:
            print(linearity(*map(list, zip(*whole, strict=True))))
    if options.alone:
        large = [(patches, what, *in_process("ours", what, patches)) for patches in options.alone for what in WHATS]
        print_table(
            "One step on a bag in tiles",
            ["patches", "", "ours, s", "us a patch", "peak MB"],
            [[f"{p:,}", what, f"{s:.1f}", f"{s / p * 1e6:.0f}", f"{peak / 1e6:.0f}"] for p, what, peak, s in large],
        )


def ways(what: str, patches: int, bags: int) -> dict[str, Callable[[], object]]:
    """Both, on the same bags with the same weights, each warm."""
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
        return {
            "peer": lambda: peer.model.predict(for_peer[0]),
            "ours": lambda: ours.model.predict(apart[0]),
            "products": products(patches, training=False),
        }
    both: dict[str, Callable[[], object]] = {
        "peer": lambda: [peer.step(batch) for batch in for_peer],
        "ours": lambda: ours.step([together], bags),
        "products": products(bags * patches, training=True),
    }
    if multiplies_bf16(DEVICE):
        half = stepper("bf16")
        both["bf16"] = lambda: half.step([together], bags)
    for way in both.values():
        way()
    return both


def stepper(precision: str) -> Stepper:
    return Stepper(made_model(), TrainConfig.model_validate({"precision": precision}), Alone(), DEVICE)


def products(patches: int, *, training: bool, dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """The matrix products of the slide encoder and the patches' projection, forward and, in training, back."""
    config = ModelConfig()
    x_PD, h_PH = (torch.randn(patches, width).to(dtype) for width in (WIDTH, config.hidden))
    z_PS, inner_PH = torch.randn(patches, config.shared), torch.randn(patches, config.hidden)
    from_x, from_h, to_shared = (
        Linear(WIDTH, config.hidden),
        Linear(config.hidden, config.hidden),
        nn.Linear(config.hidden, config.shared),
    )

    def forward() -> None:
        for _ in range(3):
            from_x(x_PD)
        for _ in range(2):
            from_h(h_PH)
        to_shared(inner_PH)

    def backward() -> None:
        for _ in range(3):  # the features themselves want no gradient
            h_PH.T @ x_PD
        for _ in range(2):
            h_PH.T @ h_PH
            from_h(h_PH)  # as large a product as the one that goes back
        z_PS.T @ inner_PH
        z_PS @ to_shared.weight

    @torch.no_grad()
    def all_of_them() -> None:
        forward()
        if training:
            backward()

    return all_of_them


def row_of(what: str, patches: int, bags: int, seconds: dict[str, float]) -> list[str]:
    cells = [f"{bags} x {patches:,}", f"{seconds['peer']:.3f}", f"{seconds['ours']:.3f}"]
    cells.append(f"{seconds['peer'] / seconds['ours']:.2f}x")
    floor = [f"{seconds['products']:.3f}", f"{seconds['peer'] / seconds['products']:.2f}x"]
    if "bf16" in seconds:
        floor += [f"{seconds['bf16']:.3f}", f"{seconds['peer'] / seconds['bf16']:.2f}x"]
    if bags > 1:
        return [*cells, "", "", "", *floor]
    peaks = [in_process(who, what, patches)[0] for who in ("peer", "ours")]
    return [*cells, *(f"{peak / 1e6:.0f}" for peak in peaks), f"{peaks[1] / peaks[0]:.0%}", *floor]


def in_process(who: str, what: str, patches: int) -> tuple[float, float]:
    """`one_step` in a process of its own."""
    command = [sys.executable, __file__, "--peak", who, what, str(patches)]
    peak, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(peak), float(seconds)


def linearity(patches: list[int], seconds: list[float]) -> str:
    """A straight line through the times, each point weighted by its relative error, and its R2."""
    x, y = np.array(patches, float), np.array(seconds)
    constant, slope = Polynomial.fit(x, y, 1, w=1 / y).convert().coef
    left = ((y - constant - slope * x) ** 2).sum()
    r2 = 1 - left / ((y - y.mean()) ** 2).sum()
    return f"Ours, whole: {constant * 1e3:.1f} ms + {slope * 1e6:.1f} us a patch, R2 = {r2:.4f}"


class PlainEncoder(nn.Module):
    """The slide encoder as PyTorch Geometric's user writes it; parameters are named as ours."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, self.dropout = config.hidden, config.dropout
        options = {"heads": config.heads, "dropout": config.dropout}
        self.gat1 = GATv2Conv(WIDTH, hidden // config.heads, **options)
        self.gat2 = GATv2Conv(hidden, hidden // config.heads, **options)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.residual1 = nn.Linear(WIDTH, hidden)
        self.edge_index_of: dict[str, Tensor] = {}

    def forward(self, batch: BagBatch, noise: object) -> Tensor:
        edge_index = self.edge_index_of[batch.bag_ids[0]]
        x = batch.features_PD
        h1 = F.dropout(F.elu(self.norm1(self.gat1(x, edge_index))), self.dropout, self.training) + self.residual1(x)
        h2 = F.dropout(F.elu(self.norm2(self.gat2(h1, edge_index))), self.dropout, self.training) + h1
        return torch.maximum(h1, h2)


class Peer:
    """The peer's model with its optimiser; edges are made ready outside of what is timed."""

    def __init__(self) -> None:
        self.model = made_model()
        self.encoder = PlainEncoder(self.model.model_config)
        self.model.slide_encoder = self.encoder
        self.config = TrainConfig()
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=self.config.lr, weight_decay=1e-4)

    def ready(self, batch: BagBatch) -> BagBatch:
        edge_index = batch.graph.edge_index_2M
        self.encoder.edge_index_of[batch.bag_ids[0]] = edge_index[:, edge_index[0] != edge_index[1]]
        return replace(batch, tiles=())  # which it knows nothing of

    def step(self, batch: BagBatch) -> None:
        self.model.train()
        self.optimiser.zero_grad()
        output = self.model(batch)
        self.model.losses(output, batch)["total"].sum().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self.model.memory.update(*self.model.evidence(output, batch), 1)


def one_step(who: str, what: str, patches: int) -> tuple[int, float]:
    """The highest resident memory of a step above what was resident before it, in bytes, and its CPU seconds."""
    small, large = batch_of([made_bag(40, 0)]), batch_of([made_bag(patches, 1)])
    ours, peer = stepper("fp32"), Peer()
    if who == "peer":
        small, large = peer.ready(small), peer.ready(large)
    if what == "inference":
        model = (ours if who == "ours" else peer).model.eval()
        step: Callable[[BagBatch], object] = model.predict
    else:
        step = peer.step if who == "peer" else lambda batch: ours.step([batch], 1)
    step(small)  # compiled kernels, gradients and the optimiser's state are there before
    Path("/proc/self/clear_refs").write_text("5")
    before, began = status("VmRSS"), time.process_time()
    step(large)
    return status("VmHWM") - before, time.process_time() - began


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def made_model() -> MoMKD:
    torch.manual_seed(0)
    return MoMKD(ModelConfig(), MemoryConfig(), LossConfig(), width=WIDTH, genes=GENES)


def made_bag(patches: int, seed: int) -> Bag:
    """Tissue is compact: patches fill a square of the grid, row by row."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(patches**0.5))
    coords_P2 = np.stack(np.divmod(np.arange(patches), side), 1).astype(np.int32) * 256
    features_PD = rng.standard_normal((patches, WIDTH), dtype=np.float32)
    return Bag(f"{patches}-{seed}", features_PD, coords_P2, *knn_graph(coords_P2, NEIGHBORS), {})


def batch_of(bags: list[Bag]) -> BagBatch:
    omics = [np.random.default_rng(b).standard_normal(GENES) for b in range(len(bags))]
    return collate(bags, [b % 2 for b in range(len(bags))], omics, list(range(len(bags))))


if __name__ == "__main__":
    main()
