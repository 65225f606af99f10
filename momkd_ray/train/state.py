"""What a checkpoint holds, saving and restoring it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from momkd_ray import storage
from momkd_ray.errors import InputError
from momkd_ray.train.step import Stepper


@dataclass
class Progress:
    """Where a fold stands: the next step to take, and the best epoch so far."""

    epoch: int = 0
    step: int = 0  # position within the epoch
    best_auc: float = float("-inf")
    best_epoch: int = -1
    stale_epochs: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # a metrics line an epoch


def save_state(
    location: str,
    progress: Progress,
    stepper: Stepper,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    fingerprint: str,
) -> None:
    """Write one whole checkpoint file: model with its memory's accumulators, optimiser, scheduler, position, RNG."""
    content = {
        "fingerprint": fingerprint,
        "progress": vars(progress),
        "model": stepper.model.state_dict(),
        "optimiser": stepper.optimiser.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    storage.write_bytes(location, buffer.getvalue())


def read_state(location: str) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU; only tensors and plain values are unpickled."""
    content: dict[str, Any] = torch.load(
        io.BytesIO(storage.read_bytes(location)), map_location="cpu", weights_only=True
    )
    return content


def restore(
    location: str,
    stepper: Stepper,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    fingerprint: str,
) -> Progress | None:
    """Put everything back as the checkpoint has it; None where there is no checkpoint.

    Raises:
        InputError: the checkpoint belongs to another configuration or other data.
    """
    if not storage.exists(location):
        return None
    content = read_state(location)
    if content["fingerprint"] != fingerprint:
        raise InputError(
            f"{location} was written by a run of another configuration or other data; choose another run.dir"
        )
    stepper.model.load_state_dict(content["model"])
    stepper.optimiser.load_state_dict(content["optimiser"])
    scheduler.load_state_dict(content["scheduler"])
    torch.set_rng_state(content["rng"])
    return Progress(**content["progress"])
