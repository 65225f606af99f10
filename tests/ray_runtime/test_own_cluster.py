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
from concurrent.futures import ThreadPoolExecutor
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
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        me = psutil.Process()
        processes = [me, *me.children(recursive=True)]
        ports = [
            (socket.laddr.ip, socket.laddr.port, " ".join(process.cmdline()))
            for process in processes
            for socket in process.net_connections(kind="inet")
            if socket.status == "LISTEN"
        ]
        if sum("DashboardAgent" in command for _, _, command in ports) >= 3:
            break  # the last to listen, for gRPC, HTTP and metrics
        time.sleep(0.2)
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
# with the token those are asked that change nothing when they are given an empty message
HARMLESS = (
    "ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "ray.rpc.NodeManagerService/GetNodeStats",
    "ray.rpc.ObjectManagerService/FreeObjects",
    "ray.rpc.CoreWorkerService/GetCoreWorkerStats",
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
    variables = os.environ | {own_cluster.DASHBOARD_VARIABLE: "1"}
    command, pipe = [sys.executable, "-c", OWNER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=variables) as process:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        yield Owned(facts, Path(facts["token_file"]).read_text())
        process.communicate("")


def grpc_answers(target: str, token: str = "") -> dict[str, tuple[str, str]]:
    """Status and details of every method that the server at a port knows, asked without or with a token."""
    answers = {}
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(target) as channel:
        for method in HARMLESS if token else METHODS:
            try:
                channel.unary_unary(f"/{method}")(b"", timeout=10, metadata=metadata)
                answers[method] = ("OK", "")
            except grpc.RpcError as error:
                answers[method] = (error.code().name, error.details())
    return {method: answer for method, answer in answers.items() if answer[0] != "UNIMPLEMENTED"}


def http_answer(url: str, token: str = "") -> tuple[int, bytes] | None:
    """Status and body of an answer without or with a token; None where nobody speaks HTTP."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read(200)
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, http.client.HTTPException):
        return None


def row_of(owned: Owned, port: int, command: str) -> tuple[str, ...]:
    """What a port speaks, and how it answers without and with the token."""
    url, target = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
    http = [answer for path in PATHS if (answer := http_answer(f"{url}{path}")) is not None]
    if not http:
        refused, taken = grpc_answers(target), grpc_answers(target, owned.token)
        assert refused, f"{command} at port {port} knows none of the methods that are tried"
        assert {code for code, _ in refused.values()} == {"UNAUTHENTICATED"}, (command, refused)
        speaks, without = "gRPC", "UNAUTHENTICATED"
        codes = {code for code, _ in taken.values()}
        assert "UNAUTHENTICATED" not in codes, (command, taken)
        answer = ", ".join(f"{method.rpartition('.')[2]} {code}" for method, (code, _) in taken.items()) or "-"
    elif {status for status, _ in http} == {401}:
        speaks, without = "HTTP", "401"
        statuses = {answer[0] for path in PATHS if (answer := http_answer(f"{url}{path}", owned.token)) is not None}
        assert 401 not in statuses, command
        answer = ", ".join(map(str, sorted(statuses)))
    else:  # figures for Prometheus and nothing else, whatever is asked
        assert all(status == 200 and body.startswith(b"# HELP") for status, body in http), (command, http)
        speaks, without, answer = "HTTP", "200, metrics alone", "200, metrics alone"
    return str(port), process_name(command), speaks, without, answer


def test_every_port_is_on_loopback_and_refuses_without_the_token(owned: Owned) -> None:
    """`pytest -s -k every_port tests/ray_runtime` prints the ports and what answers there."""
    ports = sorted(owned.facts["ports"], key=lambda entry: entry[1])
    assert len(ports) >= 10
    for ip, port, command in ports:
        assert ip in LOOPBACK, f"{command} listens at {ip}:{port}"
    with ThreadPoolExecutor() as side_by_side:
        rows = list(side_by_side.map(lambda entry: row_of(owned, *entry[1:]), ports))
    table = [("port", "process", "speaks", "without the token", "with the token"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    spoken = {(speaks, without) for _, _, speaks, without, _ in rows}
    assert spoken == {("gRPC", "UNAUTHENTICATED"), ("HTTP", "401"), ("HTTP", "200, metrics alone")}


def process_name(command: str) -> str:
    """Names a process of Ray by its command line."""
    known = (
        "gcs_server",
        "raylet/raylet",
        "dashboard/agent",
        "runtime_env/agent",
        "dashboard/dashboard",
        "log_monitor",
    )
    known += ("monitor.py", "ray-dashboard-", "ray::")
    found = next((name for name in known if name in command), "")
    if found in ("ray::", "ray-dashboard-"):
        return command.split()[0]
    if not found:
        return "the command itself"
    return found.replace("/", " ") if "agent" in found else found.rpartition("/")[2]


def test_a_client_needs_the_token(owned: Owned, tmp_path: Path) -> None:
    connects = "import ray; ray.init(log_to_driver=False); print(ray.get(ray.remote(lambda: 'ran').remote()))"
    with ThreadPoolExecutor() as side_by_side:
        tokens = (None, "0" * 64, owned.token)
        *refused, allowed = side_by_side.map(lambda token: owned.python(connects, tmp_path, token), tokens)
    for one in refused:
        assert one.returncode != 0
        assert "ran" not in one.stdout
        assert "AuthenticationError" in one.stderr or "UNAUTHENTICATED" in one.stderr.upper()
    assert "ran" in allowed.stdout, allowed.stderr


@pytest.mark.slow
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


@pytest.mark.parametrize("patience_s", [120.0, 0.0])
def test_a_slow_start_is_waited_for(monkeypatch: pytest.MonkeyPatch, patience_s: float) -> None:
    from ray._private import services

    answers = iter([RuntimeError("not registered"), RuntimeError("not registered"), {"node_id": "n"}])

    def get_node(gcs_address: str, node_id: str) -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(own_cluster, "START_WAIT_S", patience_s)
    with own_cluster._patient_start():
        if patience_s:
            assert services.get_node("address", "n") == {"node_id": "n"}
        else:
            with pytest.raises(RuntimeError, match="not registered"):
                services.get_node("address", "n")
    assert services.get_node is get_node


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
