"""`momkd-ray doctor`: what it says of machines that lack something, as text and as JSON, with its exit code."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from support.command_line import outcome
from support.s3 import S3Server

from momkd_ray import __version__
from momkd_ray.config.load import Config
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.doctor import checks
from momkd_ray.doctor.checks import Diagnosis, diagnose
from momkd_ray.doctor.machine import describe_machine
from momkd_ray.ray_runtime.cluster import Connection


def of_machine(monkeypatch: pytest.MonkeyPatch, config: Config | None = None, **changes: Any) -> Diagnosis:
    here = describe_machine([]) | {"memory_gb": 16.0, "shm_gb": 8.0, "gpus_present": 0, "gpus_usable": 0} | changes
    monkeypatch.setattr(checks, "describe_machine", lambda probes: here | {"unreachable": {}})
    return diagnose([], config, None)


def said(diagnosis: Diagnosis, name: str, status: str) -> str:
    return "; ".join(c.text for c in diagnosis.checks if c.name == name and c.status == status)


def test_a_good_machine_has_no_fault(monkeypatch: pytest.MonkeyPatch, tiny_config: Config) -> None:
    diagnosis = of_machine(monkeypatch, tiny_config)
    assert diagnosis.ok
    assert "feature files" in said(diagnosis, "features", "ok")


def test_a_gpu_that_is_there_and_unused_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    by_build = of_machine(monkeypatch, gpus_present=2, cuda_build=None)
    assert not by_build.ok
    assert "2 are there and unused" in said(by_build, "GPUs", "fault")
    assert "install one for CUDA" in said(by_build, "GPUs", "fault")
    assert "nvidia-smi" in said(of_machine(monkeypatch, gpus_present=1, cuda_build="12.8"), "GPUs", "fault")
    hidden = of_machine(monkeypatch, gpus_present=2, gpus_usable=1, gpu_names=["H100"], cuda_build="12.8")
    assert hidden.ok
    assert "2 are there, of which PyTorch sees 1" in said(hidden, "GPUs", "note")


def test_gpus_and_the_configuration_are_compared(monkeypatch: pytest.MonkeyPatch, tiny_config: Config) -> None:
    usable: dict[str, Any] = {"gpus_present": 1, "gpus_usable": 1, "gpu_names": ["H100"], "cuda_build": "12.8"}
    assert not said(of_machine(monkeypatch, tiny_config, **usable), "GPUs", "note")  # they are chosen by `auto`
    unused = tiny_config.model_copy(update={"cluster": ClusterConfig(gpus_per_worker=0)})
    assert "cluster.gpus_per_worker" in said(of_machine(monkeypatch, unused, **usable), "GPUs", "note")
    tree = tiny_config.model_dump(mode="json")
    tree["cluster"]["gpus_per_worker"] = 1
    assert "this machine has none" in said(of_machine(monkeypatch, Config.model_validate(tree)), "GPUs", "note")


def test_little_memory_and_little_shared_memory_are_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--shm-size" in said(of_machine(monkeypatch, shm_gb=0.06), "shared memory", "fault")
    assert "30 %" in said(of_machine(monkeypatch, shm_gb=2.0), "shared memory", "note")
    assert "2.0 GB" in said(of_machine(monkeypatch, memory_gb=2.0), "memory", "fault")


def test_a_broken_torch_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    diagnosis = of_machine(monkeypatch, torch_error="libcudart.so.12: cannot open shared object file")
    assert "libcudart" in said(diagnosis, "torch", "fault")


def test_storage_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    new = tmp_path / "run" / "of tomorrow"
    diagnosis = diagnose([str(tmp_path), str(new)], None, None)
    assert "can be written, read and deleted" in said(diagnosis, "storage", "ok")
    assert list(tmp_path.iterdir()) == []


def test_storage_on_s3_is_checked_too(s3_server: S3Server) -> None:
    assert "can be written" in said(diagnose([f"s3://{s3_server.bucket}/doctor"], None, None), "storage", "ok")
    absent = diagnose(["s3://there-is-no-such-bucket-here/x"], None, None)
    assert "cannot be written" in said(absent, "storage", "fault")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be written" in said(diagnose([str(tmp_path)], None, None), "storage", "fault")


def test_a_port_in_use_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setattr(checks, "PORTS", {port: "Ray's dashboard"})
        assert f"{port} is in use" in said(of_machine(monkeypatch), "ports", "note")
    assert f"{port} is free" in said(of_machine(monkeypatch), "ports", "ok")


def test_missing_features_and_tables_are_faults(monkeypatch: pytest.MonkeyPatch, tiny_config: Config) -> None:
    tree = tiny_config.model_dump(mode="json")
    tree["features"]["dir"] = "/nowhere/features"
    tree["cohort"]["omics"] = "/nowhere/rna.csv"
    diagnosis = of_machine(monkeypatch, Config.model_validate(tree))
    assert "/nowhere/features" in said(diagnosis, "features", "fault")
    assert "/nowhere/rna.csv" in said(diagnosis, "tables", "fault")


def test_nodes_that_differ_are_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = describe_machine([])
    node = {"address": "10.0.0.2", "head": False, "ray_gpus": 0.0}
    old = here | node | {"packages": here["packages"] | {"torch": "2.1.0"}, "gpus_present": 4}

    def nodes(address: str, probes: list[str]) -> list[dict[str, Any]]:
        lost = old | {"unreachable": dict.fromkeys(probes, "the file that was written is not there")}
        head = here | node | {"address": "10.0.0.1", "head": True, "unreachable": {}}
        return [head, lost, node | {"address": "10.0.0.3", "error": "ModuleNotFoundError: no module momkd_ray"}]

    monkeypatch.setattr(checks, "_nodes", nodes)
    diagnosis = diagnose([str(tmp_path)], None, "10.0.0.1:6379")
    assert "worker 10.0.0.2 has torch 2.1.0" in said(diagnosis, "versions", "fault")
    assert "head 10.0.0.1 has the versions" in said(diagnosis, "versions", "ok")
    assert "worker 10.0.0.2 does not reach" in said(diagnosis, "storage", "fault")
    assert "4 GPUs are there that Ray does not offer" in said(diagnosis, "GPUs", "fault")
    assert "worker 10.0.0.3 cannot run this package" in said(diagnosis, "cluster", "fault")


def test_the_nodes_of_a_cluster_are_asked(
    ray_cluster: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome("doctor", "--storage", str(tmp_path), "--address", "auto", "--json")
    tree = json.loads(capsys.readouterr().out)
    assert [node["head"] for node in tree["machines"][1:]] == [True]
    assert {"name": "cluster", "status": "ok", "text": "1 node"} in tree["checks"]
    agreed = [check["status"] for check in tree["checks"] if check["name"] in ("storage", "versions")]
    assert set(agreed) == {"ok"}


def test_the_exit_code_and_the_json_follow_the_checks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for shm, code in ((8.0, 0), (0.06, 1)):
        here = describe_machine([]) | {"memory_gb": 16.0, "shm_gb": shm, "gpus_present": 0, "unreachable": {}}
        monkeypatch.setattr(checks, "describe_machine", lambda probes, here=here: here)
        assert outcome("doctor", "--json") == code
        assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)
        assert outcome("doctor") == code
        assert ("FAULT" in capsys.readouterr().out) is (code == 1)


def test_the_version_completion_quiet_and_verbose(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert outcome("--version") == 0
    assert capsys.readouterr().out == f"momkd-ray {__version__}\n"
    assert outcome("--help") == 0
    assert "--install-completion" in capsys.readouterr().out
    assert outcome("--quiet", "--verbose", "report", "--run", str(tmp_path)) == 2
    capsys.readouterr()
    assert outcome("--verbose", "report", "--run", str(tmp_path)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("momkd-ray: ")
    assert outcome("report", "--run", str(tmp_path)) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
