"""The hardware of this machine: processor, cores and memory, as a methods section names them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence

from momkd_ray.ray_runtime.own_cluster import available_cpus


def describe_hardware(gpu: str = "") -> dict[str, str | int | float]:
    """Describes this machine for the record of a run; its name is left out, since records are passed on.

    Args:
        gpu: name of the GPU that is used; '' for none.

    Returns:
        `processor`, `cores` and `memory_gib` that this process may use, and `gpu`.
    """
    return {"processor": processor_name(), "cores": available_cpus(), "memory_gib": round(memory_gib(), 1), "gpu": gpu}


def processor_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Returns the processor's model, or its architecture where the system does not say."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:
        found = None
    return " ".join(found[1].split()) if found else platform.processor() or platform.machine()


def memory_gib() -> float:
    """Returns the memory that this process may use: the machine's, or the limit of its container."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(name) as file:
                limit = min(limit, int(file.read()))
        except (OSError, ValueError):
            continue
    return limit / 2**30


def count_equal(descriptions: Sequence[dict[str, str | int | float]]) -> list[dict[str, str | int | float]]:
    """Returns equal descriptions of the workers' machines once, with the number of their `workers`."""
    counted: list[dict[str, str | int | float]] = []
    for machine in descriptions:
        known = next((one for one in counted if {**one, "workers": 0} == {**machine, "workers": 0}), None)
        if known is None:
            counted.append({**machine, "workers": 1})
        else:
            known["workers"] = int(known["workers"]) + 1
    return counted
