"""AdamW updates as PyTorch's own does, and a fold that it trains never imports PyTorch's compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.hooks import hooked
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from momkd_ray.model.adamw import AdamW

STEPS = 6
TRAINS_A_FOLD = """
import sys
from pathlib import Path
from support.fold_tasks import fold_task
from momkd_ray.train.worker import train_loop_per_worker

train_loop_per_worker({"task": fold_task(Path(sys.argv[1]))})
print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""


def trained(kind: type[torch.optim.AdamW], *, fused: bool, interrupted: bool) -> list[Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    x_NF, y_N = torch.randn(9, 5), torch.arange(9) % 2

    def new() -> torch.optim.AdamW:
        return kind(network.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)

    optimiser = new()
    schedule = OneCycleLR(optimiser, 1e-2, total_steps=STEPS)
    for step in range(STEPS):
        if interrupted and step == STEPS // 2:
            states = optimiser.state_dict(), schedule.state_dict()
            optimiser = new()
            schedule = OneCycleLR(optimiser, 1e-2, total_steps=STEPS)
            optimiser.load_state_dict(states[0])
            schedule.load_state_dict(states[1])
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x_NF), y_N).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return [p.detach() for p in network.parameters()]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("interrupted", [False, True])
def test_updates_are_those_of_pytorch_to_the_last_digit(fused: bool, interrupted: bool) -> None:
    own = trained(AdamW, fused=fused, interrupted=interrupted)
    for p, expected in zip(own, trained(torch.optim.AdamW, fused=fused, interrupted=False), strict=True):
        assert torch.equal(p, expected)


def test_a_fold_is_trained_without_the_compiler(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAINS_A_FOLD, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | hooked(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
