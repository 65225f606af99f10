"""A fold on a real cluster of several raylets survives the loss of workers, nodes, head, driver and storage."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from ray._private.services import node_ip_address_from_perspective
from ray.cluster_utils import Cluster
from ray.experimental import internal_kv
from support.failing_fold import failing_task
from support.fold_tasks import GeneratedBags, fold_task
from support.s3 import FaultyProxy, S3Server
from support.stores import write_store

from momkd_ray import storage
from momkd_ray.train.worker import train_loop_per_worker

pytestmark = pytest.mark.slow
EPOCHS = 6
# of this machine as its drivers resolve it: in a process that is connected to an own cluster Ray would take loopback
NODE_ADDRESS = node_ip_address_from_perspective("192.0.2.1:53")
TESTS = Path(__file__).parents[1]
MEMORY_CHECK_INTERVAL_MS = "RAY_memory_monitor_refresh_ms"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
}


class Machines:
    """A head without CPUs, and nodes of one CPU that come and go."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        # all see the same memory: the head's, which on a machine of its own would have enough, must not look at it
        os.environ[MEMORY_CHECK_INTERVAL_MS] = "0"
        head = {
            "node_ip_address": NODE_ADDRESS,
            "num_cpus": 0,
            "object_store_memory": 100 * 2**20,
            "include_dashboard": True,
            "dashboard_port": 28265,
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        for _ in range(2):
            self.come()

    def come(self) -> None:
        os.environ[MEMORY_CHECK_INTERVAL_MS] = "100"
        self.nodes.append(
            self.cluster.add_node(node_ip_address=NODE_ADDRESS, num_cpus=1, object_store_memory=100 * 2**20, wait=False)
        )

    def go(self) -> None:
        """Removes a node ungracefully, like a spot machine that is taken away."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def restart(self) -> None:
        """Replaces the head and all nodes by new ones."""
        self.cluster.shutdown()
        self.start()


def memory_threshold() -> str:
    """A share of this machine's memory that the worker which takes ever more passes, and other tests do not."""
    memory = psutil.virtual_memory()
    return f"{1 - memory.available / 2 / memory.total:.4f}"


@pytest.fixture(scope="module")
def remote(s3_endpoint: str, s3_client: Any) -> Iterator[tuple[S3Server, FaultyProxy]]:
    """A bucket, and a proxy before it to which the environment of the cluster leads."""
    server = S3Server(s3_endpoint, f"bucket-{uuid.uuid4().hex[:8]}", s3_client)
    server.client.create_bucket(Bucket=server.bucket)
    with FaultyProxy(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as patched:
        for name, value in server.environment(proxy.endpoint).items():
            patched.setenv(name, value)
        yield server, proxy


@pytest.fixture(scope="module")
def machines(remote: tuple[S3Server, FaultyProxy]) -> Iterator[Machines]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in ENVIRONMENT.items():
            patched.setenv(name, value)
        patched.setenv("RAY_memory_usage_threshold", memory_threshold())
        patched.setenv(MEMORY_CHECK_INTERVAL_MS, "0")
        patched.delenv("RAY_ADDRESS", raising=False)
        client = internal_kv.internal_kv_get_gcs_client()
        machines = Machines()
        yield machines
        machines.cluster.shutdown()
        if client is not None:  # ending a cluster takes away the client of the one that this process is connected to
            internal_kv._initialize_internal_kv(client)


def plan_of(
    folder: Path, location: str, workers: Any, failures: list[tuple[int, str]], seconds: float, layer: str = ""
) -> dict[str, Any]:
    marks = folder / "marks"
    marks.mkdir(parents=True)
    if layer:
        write_store(str(folder / "bags"), [GeneratedBags().read(i) for i in fold_task(folder).bags["bag_id"]])
    return {
        "layer": layer,
        "store": str(folder / "bags"),
        "marks": str(marks),
        "location": location,
        "workers": workers,
        "epochs": EPOCHS,
        "failures": failures,
        "seconds": seconds,
    }


def driven(plan: dict[str, Any], machines: Machines, deeds: dict[str, Callable[[], None]]) -> list[dict[str, Any]]:
    """Run the fold's driver to its end, doing what the marks ask for; again where it was killed.

    Returns:
        What was reported.
    """
    deadline = time.monotonic() + 800
    while True:
        known = json.dumps(plan | {"address": machines.cluster.address})
        command = [sys.executable, str(TESTS / "support" / "failing_fold.py"), known]
        driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while driver.poll() is None:
            assert time.monotonic() < deadline, driver.kill()
            for kind in [kind for kind in deeds if (Path(plan["marks"]) / kind).exists()]:
                deed = deeds.pop(kind)
                if kind == "head":
                    driver.kill()
                deed()
            time.sleep(0.05)
        output = driver.communicate()[0]
        if driver.returncode != -9:
            break
    assert driver.returncode == 0, output
    return [json.loads(line) for line in (Path(plan["marks"]) / "reports.jsonl").read_text().splitlines()]


def end_of(location: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The epochs' metrics but for their times, the steps' losses, and the test predictions of a fold."""
    lines = [json.loads(line) for line in storage.read_text(f"{location}/metrics.jsonl").splitlines()]
    epochs = pd.DataFrame(lines)
    names = storage.list_names(f"{location}/steps")
    steps = pd.concat([storage.read_table(f"{location}/steps/{name}") for name in names], ignore_index=True)
    return (
        epochs[[c for c in epochs if "seconds" not in c]],
        steps,
        storage.read_table(f"{location}/test_slides.parquet"),
    )


def undisturbed(folder: Path) -> tuple[pd.DataFrame, ...]:
    """Trains the fold in one process without failures."""
    plan = plan_of(folder / "alone", str(folder / "alone" / "fold"), 1, [], 0)
    train_loop_per_worker({"task": failing_task(plan), "report": lambda metrics: None})
    return end_of(plan["location"])


def test_a_fold_shrinks_and_grows_in_its_middle_with_the_same_loss_curve(machines: Machines, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, str(tmp_path / "fold"), [1, 2], [(6, "node"), (12, "more")], 0.1, "streamed")
    reports = driven(plan, machines, {"node": machines.go, "more": machines.come})
    worlds = [line["workers"] for line in reports if line["workers"]]
    print("workers by epoch", worlds)
    changes = [world for i, world in enumerate(worlds) if i == 0 or world != worlds[i - 1]]
    assert changes == [2, 1, 2]
    for end, expected in zip(end_of(plan["location"]), undisturbed(tmp_path), strict=True):
        pd.testing.assert_frame_equal(end, expected, rtol=1e-4, atol=1e-4)


def test_six_failures_at_random_steps_change_no_number(
    machines: Machines, remote: tuple[S3Server, FaultyProxy], tmp_path: Path
) -> None:
    server, proxy = remote
    rng = random.Random(4)
    kinds = ["exception", "killed", "memory", "node", "head", "away"]
    rng.shuffle(kinds)
    steps = sorted(rng.sample(range(2, 4 * EPOCHS - 2), len(kinds)))
    print("failures", list(zip(steps, kinds, strict=True)))

    def away() -> None:
        proxy.away(5).join()

    def replaced() -> None:
        machines.go()
        time.sleep(2)
        machines.come()

    failures = list(zip(steps, kinds, strict=True))
    plan = plan_of(tmp_path, f"{server.uri}/fold", 2, failures, 0.05)
    reports = driven(plan, machines, {"node": replaced, "head": machines.restart, "away": away})
    assert {path.name for path in Path(plan["marks"]).iterdir()} >= set(kinds)
    resumed = [note for line in reports for note in line["notes"] or [] if "resumes from" in note]
    assert resumed, reports  # of failures within one epoch the last is told
    for end, expected in zip(end_of(plan["location"]), undisturbed(tmp_path), strict=True):
        pd.testing.assert_frame_equal(end, expected, rtol=1e-5, atol=1e-5)
