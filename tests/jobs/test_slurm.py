"""The Slurm script, run with stand-ins for Slurm and Ray: `ray symmetric-run` itself ends all Ray of the machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

JOB = Path(__file__).parents[2] / "jobs" / "slurm.sbatch"
STAND_INS = {
    "scontrol": 'printf "localhost\\nother\\n"',
    "srun": 'printf "%s\\n" "$@" > "$RECORD/srun"; while case "$1" in -*) true;; *) false;; esac; do shift; done; "$@"',
    # what stands before -- is Ray's, what follows is run on the head
    "ray": 'printf "%s\\n" "$@" > "$RECORD/ray"; until [ "$1" = -- ]; do shift; done; shift; "$@"',
    "momkd-ray": 'printf "%s\\n" "$*" >> "$RECORD/momkd"; [ "$1" != "$FAILING" ]',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """An environment of a job on two nodes."""
    places = tmp_path / "bin", tmp_path / "venv" / "bin", tmp_path / "record"
    for place in places:
        place.mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text("true\n")
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "MOMKD_VENV": str(tmp_path / "venv"),
        "RECORD": str(tmp_path / "record"),
        "FAILING": "",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost,other",
        "SLURM_JOB_ID": "4711",
        "SLURM_CPUS_PER_TASK": "16",
    }


def submitted(environment: dict[str, str], *arguments: str) -> int:
    return subprocess.run(["bash", str(JOB), *arguments], env=environment).returncode


def recorded(environment: dict[str, str], name: str) -> list[str]:
    return (Path(environment["RECORD"]) / name).read_text().splitlines()


def test_every_node_starts_ray_and_the_head_checks_and_cross_validates(slurm: dict[str, str]) -> None:
    assert submitted(slurm, "/shared/my pr.yaml", "--set", "train.epochs=3") == 0
    ray = recorded(slurm, "ray")
    address = ray[ray.index("--address") + 1]
    assert address == "127.0.0.1:24711"
    assert ray[0] == "symmetric-run"
    assert ray[ray.index("--min-nodes") + 1] == "2"
    assert ray[ray.index("--num-cpus") + 1] == "16"
    assert "--num-gpus" not in ray
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(recorded(slurm, "srun"))
    assert recorded(slurm, "momkd") == [
        f"doctor --config /shared/my pr.yaml --address {address}",
        f"crossval --config /shared/my pr.yaml --address {address} --set train.epochs=3",
    ]


def test_gpus_of_the_allocation_are_ray_s(slurm: dict[str, str]) -> None:
    assert submitted(slurm | {"SLURM_GPUS_ON_NODE": "4"}, "pr.yaml") == 0
    ray = recorded(slurm, "ray")
    assert ray[ray.index("--num-gpus") + 1] == "4"


@pytest.mark.parametrize(("failing", "verbs"), [("doctor", 1), ("crossval", 2)])
def test_a_failure_is_the_job_s(slurm: dict[str, str], failing: str, verbs: int) -> None:
    assert submitted(slurm | {"FAILING": failing}, "pr.yaml") != 0
    assert len(recorded(slurm, "momkd")) == verbs


def test_a_job_without_a_configuration_says_how_it_is_used(slurm: dict[str, str]) -> None:
    assert submitted(slurm) != 0


def test_the_nodes_are_the_job_s_own() -> None:
    assert "#SBATCH --exclusive" in JOB.read_text().splitlines()
