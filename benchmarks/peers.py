"""A training step of every peer against torchmil's own, and the memory of TransMIL and WiKG on a large bag.

    python benchmarks/peers.py                    # a step at 1,000 and 4,000 patches, ratio in one run
    python benchmarks/peers.py --memory 12000     # peak memory above that of the features, a process each

A step is forward, loss, backward and AdamW in float32 on one bag of width 1,536; ours and theirs alternate, and the
medians are compared. Both embed the patches by a linear layer to 512. torchmil has no WiKG and no ACMIL.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.formats.bag import Bag
from momkd_ray.model.registry import build_model

WIDTH, HIDDEN = 1536, 512
OURS_ALONE = ("wikg", "acmil")


def batch_of(patches: int) -> BagBatch:
    features = np.random.default_rng(0).standard_normal((patches, WIDTH), dtype=np.float32)
    indptr = np.zeros(patches + 1, np.int32)  # no peer reads the graph
    bag = Bag("slide", features, np.zeros((patches, 2), np.int32), indptr, np.zeros(0, np.int32), {})
    return collate([bag], labels=[1], omics=[None], seeds=[7])


def stepper(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()

    return step


def our_step(name: str, batch: BagBatch) -> Callable[[], None]:
    torch.manual_seed(0)
    config = ModelConfig(name=name, hidden=HIDDEN, dropout=0.0)
    model = build_model(config, MemoryConfig(), LossConfig(), width=WIDTH, genes=0).train()
    return stepper(model, lambda: model.losses(model(batch), batch)["total"].sum())


def their_models() -> dict[str, Callable[[], Any]]:
    from torchmil import models

    def embedded(build: Callable[..., Any], **sizes: Any) -> Callable[[], Any]:
        embedding = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU())
        return lambda: build(in_shape=(WIDTH,), feat_ext=embedding, **sizes)

    return {
        "abmil": embedded(models.ABMIL, att_dim=128),
        "gated_abmil": embedded(models.ABMIL, att_dim=128, gated=True),
        "clam_sb": embedded(models.CLAM_SB, att_dim=128, gated=True, k_sample=8),
        "dsmil": embedded(models.DSMIL, att_dim=128),
        "transmil": embedded(models.TransMIL, att_dim=HIDDEN, n_heads=8),
        "dtfd_mil": embedded(models.DTFDMIL, att_dim=128, n_groups=5, distill_mode="afs"),
    }


def their_step(build: Callable[[], Any], batch: BagBatch) -> Callable[[], None]:
    torch.manual_seed(0)
    model = build().train()
    x_1PD, y_1 = batch.features_PD[None], torch.ones(1)
    return stepper(model, lambda: sum(model.compute_loss(y_1, x_1PD)[1].values()))


def seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def compare_steps(patches: int, repeats: int) -> None:
    batch = batch_of(patches)
    theirs = their_models()
    for name in (*theirs, *OURS_ALONE):
        steps = {"ours": our_step(name, batch)}
        if name in theirs:
            steps["torchmil"] = their_step(theirs[name], batch)
        taken: dict[str, list[float]] = {who: [] for who in steps}
        for step in steps.values():
            step()
        for _ in range(repeats):
            for who, step in steps.items():
                taken[who].append(seconds(step))
        medians = {who: 1000 * statistics.median(values) for who, values in taken.items()}
        line = "  ".join(f"{who} {value:8.1f} ms" for who, value in medians.items())
        ratio = f"  ratio {medians['torchmil'] / medians['ours']:.2f}" if name in theirs else ""
        print(f"{patches:>6} patches  {name:<12} {line}{ratio}", flush=True)


def peak_memory(name: str, patches: int) -> None:
    """Prints the peak resident memory of two steps above what features and imports take."""
    batch = batch_of(patches)
    step = our_step(name, batch)
    before = _status("VmRSS")
    step()
    step()
    print(
        f"{patches:>6} patches  {name:<12} {(_status('VmHWM') - before) / 2**30:.2f} GiB above {before / 2**30:.2f} GiB"
    )


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=int, help="patches of the bag whose memory is measured")
    parser.add_argument("--name", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.name:
        peak_memory(arguments.name, arguments.memory)
    elif arguments.memory:
        for name in ("transmil", "wikg"):
            subprocess.run([sys.executable, __file__, "--memory", str(arguments.memory), "--name", name], check=True)
    else:
        for patches in arguments.patches:
            compare_steps(patches, arguments.repeats)


if __name__ == "__main__":
    main()
