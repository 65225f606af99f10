"""Time and memory of training one fold in its trial's process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momkd_ray import storage
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.run.layout import FoldDirectory

_RESET_PEAK = "5"  # what the kernel takes to forget the peak of a process's resident memory (man proc_pid_clear_refs)


def reset_peak_memory() -> None:
    """Makes this process's peak memory that of the fold to come; without effect where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return


def write_cost(
    directory: FoldDirectory,
    cluster: ClusterConfig,
    *,
    preparation_s: float,
    refitted: bool,
    bags_validated: int,
    parameters: int,
) -> None:
    """Writes what a finished fold took, from its metrics and this process's peak memory.

    Its training is all that its model took: genes and teacher, the start, and all steps, also those of a refit, but not
    the validation after each epoch.

    Args:
        directory: the fold's files.
        cluster: with several workers memory is not theirs, and is left out.
        preparation_s: the seconds that genes and teacher took.
        refitted: whether the fold was trained again on training and validation patients together.
        bags_validated: number of validation bags, for the time of one prediction.
        parameters: number of trained parameters.
    """
    lines = _epochs(directory)
    training = preparation_s + _training_s(lines) + (_training_s(_epochs(directory.refit)) if refitted else 0.0)
    validating = sum(line["seconds_validate"] for line in lines)
    cost: dict[str, Any] = {
        "parameters": parameters,
        "epochs": len(lines),
        "training_seconds": round(training, 3),
        "prediction_seconds_per_bag": validating / (len(lines) * bags_validated),
        "peak_memory_bytes": _peak_bytes(cluster) if cluster.most_workers == 1 else None,
    }
    storage.write_json(directory.cost, cost)


def _epochs(directory: FoldDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_text(directory.metrics).splitlines()]


def _training_s(epochs: Sequence[dict[str, Any]]) -> float:
    return float(sum(epoch["seconds_start"] + epoch["seconds_train"] for epoch in epochs))


def _peak_bytes(cluster: ClusterConfig) -> int | None:
    """Returns the peak GPU memory of tensors, or without a GPU the peak resident memory; None if it is unknown."""
    if cluster.gpus:
        import torch

        return int(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), None)
