"""A cluster that a command starts serves that command alone."""

from __future__ import annotations

import http.client
import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from momkd_ray.ray_runtime import own_cluster
from momkd_ray.ray_runtime.cluster import Connection

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")

OWNER = """
import json, os, psutil, ray, sys, time
from momkd_ray.ray_runtime.cluster import connect

with connect() as connection:
    pids = ray.get([ray.remote(lambda: os.getpid()).remote() for _ in range(4)])
    session = ray._private.worker._global_node.get_session_dir_path()
    time.sleep(3)  # the dashboard's agent is the last to listen
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    ports = [
        (socket.laddr.ip, socket.laddr.port, " ".join(process.cmdline()))
        for process in processes
        for socket in process.net_connections(kind="inet")
        if socket.status == "LISTEN"
    ]
    facts = {"ports": ports, "dashboard": connection.dashboard, "token_file": connection.token_file}
    facts |= {"session": session, "address": ray.get_runtime_context().gcs_address}
    facts |= {"environment": {name: value for name, value in os.environ.items() if name.startswith("RAY_")}}
    facts["command_lines"] = [" ".join(process.cmdline()) for process in processes]
    print(json.dumps(facts), flush=True)
    sys.stdin.read()
"""

# of every service of Ray one method, which does something or tells something
METHODS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.InternalKVGcsService/InternalKVKeys",
    "ray.rpc.JobInfoGcsService/AddJob",
    "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.ObjectManagerService/Pull",
    "ray.rpc.CoreWorkerService/PushTask",
    "ray.rpc.ReporterService/GetTraceback",
    "ray.rpc.LogService/ListLogs",
    "ray.rpc.events.EventAggregatorService/AddEvents",
)
PATHS = ("/api/jobs/", "/api/cluster_status", "/get_or_create_runtime_env", "/api/v0/tasks", "/api/job_agent/jobs/")


@dataclass(frozen=True)
class Owned:
    """A cluster of another process, and its token."""

    facts: dict[str, Any]
    token: str

    def python(self, code: str, home: Path, token: str | None) -> subprocess.CompletedProcess[str]:
        """Runs code as another user of the machine would: from a home of its own, with or without the token."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        variables |= {"HOME": str(home), "RAY_ADDRESS": self.facts["address"], "RAY_AUTH_MODE": "token"}
        variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or Ray replaces the loopback address by another
        variables |= {"RAY_AUTH_TOKEN": token} if token else {}
        return subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def owned() -> Iterator[Owned]:
    process = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        yield Owned(facts, Path(facts["token_file"]).read_text())
        process.communicate("")


def grpc_answers(target: str) -> dict[str, tuple[str, str]]:
    """Status and details of every method that the server at a port knows, asked without a token."""
    answers = {}
    with grpc.insecure_channel(target) as channel:
        for method in METHODS:
            try:
                channel.unary_unary(f"/{method}")(b"", timeout=10)
                answers[method] = ("OK", "")
            except grpc.RpcError as error:
                answers[method] = (error.code().name, error.details())
    return {method: answer for method, answer in answers.items() if answer[0] != "UNIMPLEMENTED"}


def http_answer(url: str) -> tuple[int, bytes] | None:
    """Status and body of an answer without a token; None where nobody speaks HTTP."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read(200)
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, http.client.HTTPException):
        return None


def test_every_port_is_on_loopback_and_refuses_without_the_token(owned: Owned) -> None:
    assert len(owned.facts["ports"]) >= 10
    speakers = {"gRPC": 0, "HTTP": 0, "metrics": 0}
    for ip, port, command in owned.facts["ports"]:
        assert ip in LOOPBACK, f"{command} listens at {ip}:{port}"
        answers = [http_answer(f"http://127.0.0.1:{port}{path}") for path in PATHS]
        http = [answer for answer in answers if answer is not None]
        if not http:
            refused = grpc_answers(f"127.0.0.1:{port}")
            assert refused, f"{command} at port {port} knows none of the methods that are tried"
            assert {code for code, _ in refused.values()} == {"UNAUTHENTICATED"}, (command, refused)
            speakers["gRPC"] += 1
        elif {status for status, _ in http} == {401}:
            speakers["HTTP"] += 1
        else:  # figures for Prometheus and nothing else, whatever is asked
            assert all(status == 200 and body.startswith(b"# HELP") for status, body in http), (command, http)
            speakers["metrics"] += 1
    assert min(speakers.values()) > 0, speakers


def test_a_client_needs_the_token(owned: Owned, tmp_path: Path) -> None:
    connects = "import ray; ray.init(log_to_driver=False); print(ray.get(ray.remote(lambda: 'ran').remote()))"
    for token in (None, "0" * 64):
        refused = owned.python(connects, tmp_path, token)
        assert refused.returncode != 0
        assert "ran" not in refused.stdout
        assert "AuthenticationError" in refused.stderr or "UNAUTHENTICATED" in refused.stderr.upper()
    allowed = owned.python(connects, tmp_path, owned.token)
    assert "ran" in allowed.stdout, allowed.stderr


def test_jobs_and_state_work_with_the_token_alone(owned: Owned, tmp_path: Path) -> None:
    job = f"""
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_nodes
import time
client = JobSubmissionClient({owned.facts["dashboard"]!r})
print([node.state for node in list_nodes()], flush=True)
deadline = time.monotonic() + 20
while True:
    try:
        job = client.submit_job(entrypoint="echo from the job")
        break
    except RuntimeError as error:  # an agent that takes jobs is up some seconds after the cluster
        if "No available agent" not in str(error) or time.monotonic() > deadline:
            raise
        time.sleep(0.5)
while not client.get_job_status(job).is_terminal():
    time.sleep(0.2)
print(client.get_job_status(job), client.get_job_logs(job))
"""
    refused = owned.python(job, tmp_path, None)
    assert refused.returncode != 0
    allowed = owned.python(job, tmp_path, owned.token)
    assert "ALIVE" in allowed.stdout, allowed.stderr
    if "No available agent" in allowed.stderr:
        pytest.skip("another cluster on this machine holds the port of the agent that takes jobs")
    assert "SUCCEEDED" in allowed.stdout, allowed.stderr
    assert "from the job" in allowed.stdout


def test_the_token_is_where_only_the_user_can_read_it(owned: Owned) -> None:
    session = Path(owned.facts["session"])
    private = session.parents[1]
    assert private.name == f"momkd-ray-{os.getuid()}"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(owned.facts["token_file"]).stat().st_mode) == 0o600
    assert not any(owned.token in line for line in owned.facts["command_lines"])
    assert "RAY_AUTH_TOKEN" not in owned.facts["environment"], "it is for the cluster's processes alone"
    files = [path for path in session.rglob("*") if path.is_file()]
    holders = [path.name for path in files if owned.token.encode() in path.read_bytes()]
    assert holders == [own_cluster.TOKEN_FILE]


def test_each_cluster_has_a_token_of_its_own(owned: Owned, ray_cluster: Connection) -> None:
    assert ray_cluster.own
    assert Path(ray_cluster.token_file).read_text() != owned.token


@pytest.mark.parametrize(
    ("files", "quotas"),
    [
        ({}, []),
        ({"jobs/cpu.max": "150000 100000", "cpu.max": "max 100000"}, [1.5]),
        ({"jobs/one/cpu.max": "max 100000", "jobs/cpu.max": "300000 100000", "cpu.max": "200000 100000"}, [3, 2]),
    ],
)
def test_quotas_of_all_control_groups_count(tmp_path: Path, files: dict[str, str], quotas: list[float]) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    membership = tmp_path / "membership"
    membership.write_text("0::/jobs/one\n")
    assert own_cluster._cgroup_quotas(tmp_path, membership) == quotas


def test_affinity_limits_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_cluster.os, "sched_getaffinity", lambda _: {3})
    assert own_cluster.available_cpus() == 1


def test_a_long_temporary_folder_is_not_used_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("long" * 20)
    for folder in (tmp_path, long):
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(own_cluster, "_MAX_SOCKET_PATH", len(str(tmp_path)) + 100)
        expected = "/tmp" if folder == long else str(folder)
        assert own_cluster._private_folder() == f"{expected}/momkd-ray-{os.getuid()}"


def test_a_folder_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(own_cluster, "_MAX_SOCKET_PATH", 4096)
    monkeypatch.setattr(own_cluster.os, "getuid", lambda: 12345)
    (tmp_path / "momkd-ray-12345").mkdir()
    folder = Path(own_cluster._private_folder())
    assert folder.parent == tmp_path
    assert folder.name != "momkd-ray-12345"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
