"""What one machine has: versions, processors, GPUs, memory, and whether it reaches a storage location."""

from __future__ import annotations

import glob
import os
import platform
import shutil
import socket
import uuid
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from momkd_ray import storage
from momkd_ray.credentials import redact
from momkd_ray.ray_runtime.hardware import memory_gib
from momkd_ray.ray_runtime.own_cluster import available_cpus

PACKAGES = ("momkd-ray", "torch", "ray", "torch_geometric", "numpy", "pyarrow", "numba")
OPTIONAL = {
    "mlflow-skinny": "mlflow",
    "wandb": "wandb",
    "openslide-python": "slides",
    "onnxruntime": "onnx",
}
"""Distributions of optional features, and the extra that installs them."""
PROBE = ".momkd-ray-doctor-"


def describe_machine(probes: Sequence[str]) -> dict[str, Any]:
    """Describes the machine that calls it, as plain values; a node of a cluster calls it in a task.

    Args:
        probes: files that it tries to read, which the caller has written.

    Returns:
        `host`, `python`, `packages` and `optional` (version, or None), `cpus`, `gpus_present` (devices of the driver),
        `gpus_usable` and `gpu_names` (by PyTorch), `cuda_build`, `torch_error`, `memory_gb`, `shm_gb`, `unreachable`
        (reason by probe).
    """
    gpus, names, cuda, torch_error = _torch()
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "optional": {name: _version(name) for name in OPTIONAL},
        "cpus": available_cpus(),
        "gpus_present": len(glob.glob("/dev/nvidia[0-9]*")),
        "gpus_usable": gpus,
        "gpu_names": names,
        "cuda_build": cuda,
        "torch_error": torch_error,
        "memory_gb": memory_gib(),
        "shm_gb": shutil.disk_usage("/dev/shm").total / 2**30 if os.path.isdir("/dev/shm") else None,
        "unreachable": {probe: reason for probe in probes if (reason := unreadable(probe))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> tuple[int, list[str], str | None, str]:
    """Returns the usable GPUs and their names, the CUDA version of the build, and why PyTorch cannot be used."""
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if float((torch.ones(2, 2) @ torch.ones(2, 2)).sum()) != 8:
            return 0, [], torch.version.cuda, "a product of matrices of ones is wrong"
        return count, [torch.cuda.get_device_name(i) for i in range(count)], torch.version.cuda, ""
    except Exception as error:  # a broken installation raises anything
        return 0, [], None, " ".join(str(error).split()) or type(error).__name__


def existing_folder(location: str) -> str:
    """Returns a local folder's nearest ancestor that exists, so that checking creates none; a URI as it is."""
    path = storage.local_path(location)
    if path is None:
        return location
    while not os.path.isdir(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    return path


def write_probe(location: str) -> tuple[str, str]:
    """Writes a small file into a folder, to be read from every machine and deleted by `delete_probe`.

    Returns:
        Its location, and why it could not be written ('' if it was).
    """
    probe = storage.join(location, f"{PROBE}{uuid.uuid4().hex[:12]}")
    try:
        storage.write_text(probe, PROBE)
        return probe, ""
    except Exception as error:  # whatever storage says is the result
        return probe, redact(" ".join(str(error).split()) or type(error).__name__)


def unreadable(probe: str) -> str:
    """Returns why a probe cannot be read on this machine; '' if it can."""
    try:
        return "" if storage.read_text(probe) == PROBE else "it has another content here"
    except FileNotFoundError:
        return "the file that was written is not there"
    except Exception as error:
        return redact(" ".join(str(error).split()) or type(error).__name__)


def delete_probe(probe: str) -> None:
    """Deletes a probe that was written."""
    storage.delete(probe)


def taken(port: int) -> bool:
    """Tells whether something listens at a port of this machine."""
    with socket.socket() as s:
        s.settimeout(0.5)
        return s.connect_ex(("127.0.0.1", port)) == 0
