"""The record of the hardware: as the system names it, and equal machines counted once."""

from __future__ import annotations

import platform
from pathlib import Path

from momkd_ray.ray_runtime.hardware import count_equal, describe_hardware, processor_name


def test_a_machine_is_described_without_its_name() -> None:
    machine = describe_hardware("H100")
    assert set(machine) == {"processor", "cores", "memory_gib", "gpu"}
    assert machine["processor"] and float(machine["cores"]) >= 1 and float(machine["memory_gib"]) > 0
    assert platform.node() not in str(machine)


def test_the_processor_is_named_where_the_system_says_it(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD   EPYC 7B13\nmodel name\t: other\n")
    assert processor_name(str(tmp_path / "cpuinfo")) == "AMD EPYC 7B13"
    (tmp_path / "arm").write_text("processor\t: 0\nCPU part\t: 0xd0c\n")
    for name in ("arm", "missing"):
        assert processor_name(str(tmp_path / name)) in (platform.processor(), platform.machine())


def test_equal_machines_are_counted() -> None:
    one, other = {"processor": "a", "cores": 2}, {"processor": "b", "cores": 2}
    assert count_equal([one, other, one]) == [{**one, "workers": 2}, {**other, "workers": 1}]
