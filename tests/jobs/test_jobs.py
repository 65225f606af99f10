"""Jobs on an autoscaling cluster: what is uploaded, machines that come and go, stopping and going on.

The cluster is real but for its machines: each is processes of this one (`fake_machines`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.util import prepare_config, validate_config
from support.held_fold import HELD_AFTER

ROOT = Path(__file__).parents[2]
FAKE_HEAD = "f" * 51 + "00000"  # the id that Ray's fake provider gives its head
PORTS = {
    "port": 27391,
    "dashboard-port": 27265,
    "metrics-export-port": 27380,
    "ray-client-server-port": 27001,
    "dashboard-agent-listen-port": 27376,
    "min-worker-port": 27400,
    "max-worker-port": 27999,
}
IDLE_MINUTES = 0.2
EPOCHS = 6  # of a fold that is stopped after a few of them


def on_this_machine(cluster: dict[str, Any]) -> dict[str, Any]:
    """Our cluster.yaml with one machine of each type at most, each of one CPU and none with a GPU."""
    head = cluster["head_node_type"]
    types = {
        name: {**kind, "node_config": {}, "resources": {"CPU": 1}, "max_workers": min(1, kind["max_workers"])}
        for name, kind in cluster["available_node_types"].items()
    }
    types["ray.head.default"] = types.pop(head) | {"resources": cluster["available_node_types"][head]["resources"]}
    whole = prepare_config(cluster)  # with all defaults, which a fake provider has none of
    return whole | {
        **{key: [] for key in whole if key.endswith("_commands")},
        "file_mounts": {},
        "max_workers": sum(kind["max_workers"] for kind in types.values()),
        "idle_timeout_minutes": IDLE_MINUTES,
        "head_node_type": "ray.head.default",
        "available_node_types": types,
        "provider": {
            "type": "external",
            "module": "support.fake_machines.FakeMachines",
            "disable_node_updaters": True,
            "head_node_id": FAKE_HEAD,
            "launch_multiple": True,
            "gcs_address": f"{get_node_ip_address()}:{PORTS['port']}",
        },
    }


class Cluster:
    """A head that starts and ends machines, and the commands of a laptop that submits to it."""

    def __init__(self, folder: Path) -> None:
        self.ray = str(Path(sys.executable).parent / "ray")
        self.dashboard = f"http://127.0.0.1:{PORTS['dashboard-port']}"
        self.folder = folder
        self.variables = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.config = on_this_machine(yaml.safe_load((ROOT / "cluster.yaml").read_text()))

    def start(self) -> None:
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(self.config))
        paths = [str(Path(__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        fake = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD,
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD,
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        options = [f"--{name}={value}" for name, value in PORTS.items()]
        options += ["--dashboard-host=127.0.0.1", f"--temp-dir={self.folder}/ray"]
        self.head = subprocess.Popen(
            [self.ray, "start", "--head", "--block", "--num-cpus=0", f"--autoscaling-config={path}", *options],
            env=self.variables | fake,
            stdout=(self.folder / "head.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until(lambda: answers(f"{self.dashboard}/api/version"), lambda: (self.folder / "head.log").read_text())

    def stop(self) -> None:
        os.killpg(self.head.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):  # it gives each of its processes half a minute
            self.head.wait(timeout=5)
        for process in psutil.process_iter(["cmdline"]):
            if any(f"{self.folder}/ray" in part for part in process.info["cmdline"] or []):
                process.kill()

    def command(self, verb: str, *arguments: str) -> list[str]:
        return [self.ray, "job", verb, "--address", self.dashboard, *arguments]

    def submission(self, name: str, home: Path, hook: str = "", **settings: object) -> list[str]:
        """The demo's cross-validation, in the home directory that the job is given; its workers begin with the hook."""
        sets = [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
        hooks = {"worker_process_setup_hook": hook} if hook else {}
        environment = json.dumps({"env_vars": {"HOME": str(home)}, **hooks})
        options = ["--submission-id", name, "--working-dir", ".", "--runtime-env-json", environment]
        return self.command(
            "submit", *options, "--", "python", "jobs/crossval.py", "--config", "jobs/configs/demo.yaml", *sets
        )

    def popen(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=self.variables,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=hear_ctrl_c,
        )

    def run(self, command: list[str]) -> tuple[int, str]:
        done = self.popen(command)
        try:
            output, _ = done.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            done.kill()
            output, _ = done.communicate(timeout=20)
            raise AssertionError(f"still running after 400 s: {command}\n{output}\n{self.state()}") from None
        return done.returncode, output

    def state(self) -> str:
        """The machines, actors and placement groups that are not gone, and the end of the autoscaler's log."""
        keys = {
            "nodes": ("node_id", "state", "node_ip", "resources_total"),
            "actors": ("class_name", "state", "node_id", "job_id", "pid", "death_cause"),
            "placement_groups": ("placement_group_id", "state", "bundles", "stats"),
        }
        rows = [
            f"{kind}: { {key: row.get(key) for key in columns} }"
            for kind, columns in keys.items()
            for row in self.listed(kind)
            if row["state"] not in {"DEAD", "REMOVED"}
        ]
        log = (self.folder / "ray/session_latest/logs/monitor.log").read_text().splitlines()
        return "\n".join([*rows, *[line for line in log if "legacy field" not in line][-40:]])

    def listed(self, what: str) -> list[dict[str, Any]]:
        """What the State API lists."""
        answer = json.loads(read(f"{self.dashboard}/api/v0/{what}?limit=1000&detail=true"))
        rows: list[dict[str, Any]] = answer["data"]["result"]["result"]
        return rows

    def workers(self) -> int:
        return sum(node["state"] == "ALIVE" and not node["is_head_node"] for node in self.listed("nodes"))

    def status(self, job: str) -> str:
        return str(json.loads(read(f"{self.dashboard}/api/jobs/{job}"))["status"])


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


def answers(url: str) -> bool:
    try:
        return bool(read(url))
    except OSError:
        return False


def hear_ctrl_c() -> None:
    """What a shell starts in the background is deaf to it, and so are its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(condition: Callable[[], Any], told: Callable[[], object] = str, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.3)
    return value


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="jobs"))  # sockets lie in it: pytest's own paths are too long for them
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_the_types_of_the_test_are_those_of_cluster_yaml() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    fake = on_this_machine(cluster)
    validate_config(prepare_config(json.loads(json.dumps(fake))))
    assert {*fake["available_node_types"]} - {"ray.head.default"} == {*cluster["available_node_types"]} - {"head"}
    assert fake["available_node_types"]["ray.head.default"]["resources"] == {"CPU": 0}
    assert fake["max_workers"] == len(fake["available_node_types"]) - 1 == 3


@pytest.mark.slow
def test_machines_come_with_the_work_and_leave_when_idle_and_a_job_carries_its_exit_code(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began, timeline = time.monotonic(), ["", "seconds  event"]

    def happened(event: str) -> None:
        timeline.append(f"{time.monotonic() - began:7.1f}  {event}")

    most, now, seen = cluster.config["max_workers"], 0, {0}
    assert cluster.workers() == 0
    happened("submitted to a head without workers")
    small = {"folds__n": 3, "train__epochs": 4, "synthetic__patients": 30, "synthetic__patches": 60}
    job = cluster.popen(cluster.submission("grow", tmp_path, **small))
    wrong = cluster.popen(cluster.submission("bad", tmp_path / "bad", cohort__label="NOPE", **small))  # meanwhile
    run = tmp_path / "momkd-demo" / "run"
    folds: set[str] = set()
    while job.poll() is None:
        before, now = now, cluster.workers()
        if before != now:
            happened(f"{now} of at most {most} workers")
            seen.add(now)
        for path in sorted({p.parent.name for p in run.glob("fold=*/metrics.jsonl")} - folds):
            folds.add(path)
            happened(f"{path} has trained an epoch")
        time.sleep(0.3)
    happened(f"the job ended with exit code {job.returncode}")
    output = job.communicate()[0]
    assert job.returncode == 0, output
    assert max(seen) == most
    assert (run / "report.html").exists()
    until(lambda: not cluster.workers(), lambda: timeline)
    happened("no worker is left")
    with capsys.disabled():
        print("\n".join(timeline))

    output, _ = wrong.communicate(timeout=60)
    assert wrong.returncode == 1, output
    assert "NOPE" in output
    assert cluster.status("bad") == "FAILED"

    # plain lines in the log, from the first count to the final table
    code, told = cluster.run(cluster.command("logs", "grow"))
    assert code == 0
    assert "folds: 3/3" in told
    log = json.loads(read(f"{cluster.dashboard}/api/jobs/grow/logs"))["logs"]  # without the command's own colours
    assert not {"\x1b", "\r"} & {*log}
    assert "fold 2: 4/4 validation AUC" in log
    assert any(line.startswith("auc ") and "+-" in line for line in log.splitlines())
    assert f"Report: {run}/report.html" in log


@pytest.mark.slow
def test_a_stopped_job_leaves_a_run_that_the_next_one_finishes(cluster: Cluster, tmp_path: Path) -> None:
    settings = {"folds__n": 2, "cluster__workers": 2, "synthetic__patients": 30, "synthetic__patches": 60}
    # a refit of the first fold would wait for the machines that the second one holds
    settings |= {"train__epochs": EPOCHS, "train__patience": EPOCHS, "train__refit": False}
    run = tmp_path / "momkd-demo" / "run"
    laptop = cluster.popen(cluster.submission("first", tmp_path, "support.held_fold.hold", **settings))
    until(lambda: laptop.poll() is not None or [*run.glob("fold=*/metrics.jsonl")])
    assert laptop.poll() is None, laptop.communicate()[0]
    # Ctrl-C ends the laptop's view of the job alone
    laptop.send_signal(signal.SIGINT)
    laptop.communicate(timeout=60)
    assert cluster.status("first") == "RUNNING"

    until(lambda: [*run.glob("fold=*/result.json")])
    [finished] = run.glob("fold=*/result.json")  # either: two folds of two workers wait for room for one
    told = run / ("fold=1" if finished.parent.name == "fold=0" else "fold=0") / "metrics.jsonl"
    # the second fold waits there until the job is stopped, however fast the machine is
    until(lambda: told.exists() and told.read_text().count("\n") == HELD_AFTER)
    code, output = cluster.run(cluster.command("stop", "first"))
    assert code == 0, output
    assert cluster.status("first") == "STOPPED"
    log = json.loads(read(f"{cluster.dashboard}/api/jobs/first/logs"))["logs"]
    assert log.splitlines()[-1].endswith("run the same command again to resume")
    assert "\x1b" not in log
    until(lambda: not trainers(cluster), lambda: trainers(cluster))
    before, stamp = told.read_text(), finished.stat().st_mtime_ns
    assert before.count("\n") == HELD_AFTER < EPOCHS
    assert not (run / "metrics.json").exists()

    code, output = cluster.run(cluster.submission("second", tmp_path, **settings))
    assert code == 0, output
    assert "1 of 2 folds are finished already" in output
    assert finished.stat().st_mtime_ns == stamp
    assert told.read_text().startswith(before)
    assert (run / "report.html").exists()
    # the dashboard's Train page has both jobs' runs
    trained = json.loads(read(f"{cluster.dashboard}/api/train/v2/runs/v1"))["train_runs"]
    states = {(one["name"].rsplit("-", 1)[1], one["status"]) for one in trained}
    assert states >= {("0", "FINISHED"), ("1", "FINISHED")}, trained


def trainers(cluster: Cluster) -> list[str]:
    """The actors that are alive, but for those that Ray keeps for the cluster as a whole."""
    alive = [actor for actor in cluster.listed("actors") if actor["state"] == "ALIVE"]
    return [actor["class_name"] for actor in alive if not actor["is_detached"]]


def test_only_what_a_job_needs_is_uploaded(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    checkout = tmp_path / "checkout"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, text=True, capture_output=True, check=True).stdout.split()
    junk = ["runs/pr/fold=0/checkpoint.pt", "a.h5", "data/features/b.h5", "data/bags/part-0.parquet", ".git/HEAD"]
    junk += [".venv/bin/python", "momkd-demo/run/run.yaml", "momkd_ray/__pycache__/cli.cpython-311.pyc"]
    junk += ["dist/momkd_ray-0.1.0-py3-none-any.whl", "build/lib/x.py", "momkd_ray.egg-info/PKG-INFO", "mlruns/0/x"]
    for name in tracked:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    for name in junk:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("junk")
    for gitignore in (True, False):
        package = tmp_path / f"{gitignore}.zip"
        create_package(str(checkout), package, include_gitignore=gitignore, include_parent_dir=False)
        with zipfile.ZipFile(package) as zipped:
            uploaded = {name for name in zipped.namelist() if not name.endswith("/")}
        needed = {name for name in tracked if name.startswith(("momkd_ray/", "jobs/"))} | {"pyproject.toml"}
        assert needed <= uploaded <= {*tracked}
        assert not any(name.startswith("tests/") for name in uploaded)
