"""A lease has one holder at a time; a killed one is followed at once, one on another machine when it is still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.s3 import S3Server

from momkd_ray import storage
from momkd_ray.errors import InputError, RunError
from momkd_ray.storage import lease as module
from momkd_ray.storage.lease import lease
from momkd_ray.storage.process_identity import ProcessIdentity, this_process

HOLD = """
import sys, time
from momkd_ray.errors import RunError
from momkd_ray.storage.lease import lease
try:
    with lease(sys.argv[1], "runs/pr", sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
except RunError as error:
    print(error, flush=True)
"""


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run" / "lease.json")
    server: S3Server = request.getfixturevalue("s3_server")
    return f"{server.uri}/run/lease.json"


def holder(location: str, part: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, location, part], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def elsewhere(location: str, **changes: Any) -> None:
    """Makes the holder one of another machine."""
    tree = storage.read_json(location)
    tree["holders"][0]["process"]["machine"] = "another"
    tree["holders"][0] |= changes
    storage.write_json(location, tree)


def test_a_second_process_is_refused_and_a_killed_one_followed_at_once(location: str) -> None:
    first = holder(location)
    assert said(first) == "held"
    with pytest.raises(RunError) as caught, lease(location, "runs/pr"):
        pass
    host = os.uname().nodename
    sentence = str(caught.value)
    assert sentence.startswith(f"runs/pr is in use by process {first.pid} on {host} since 20")
    assert sentence.endswith(" UTC: wait until that run has ended, or choose another run.dir")

    first.send_signal(signal.SIGKILL)
    first.wait()
    began = time.monotonic()
    with lease(location, "runs/pr"):
        assert time.monotonic() - began < 2
        second = holder(location)
        assert f"in use by process {os.getpid()} on {host}" in said(second)
        second.communicate()
    third = holder(location)
    assert said(third) == "held"
    third.communicate()
    assert storage.read_json(location) == {"holders": []}


def test_folds_are_held_beside_each_other_and_not_beside_all_of_them(location: str) -> None:
    first = holder(location, "fold 1")
    assert said(first) == "held"
    with lease(location, "runs/pr", "fold 0"), ExitStack() as stack:
        stack.enter_context(lease(location, "runs/pr", "fold 2"))
        for part in ("fold 1", ""):
            with pytest.raises(RunError, match=r"in use by process .*\(fold 1\)"), lease(location, "runs/pr", part):
                pass
        first.communicate()
        stack.enter_context(lease(location, "runs/pr", "fold 1"))
        with pytest.raises(RunError, match=r"\(fold 0\)"), lease(location, "runs/pr"):
            pass
    with lease(location, "runs/pr"), pytest.raises(RunError, match="UTC: wait"), lease(location, "runs/pr", "fold 0"):
        pass


def test_of_many_at_once_one_holds(location: str) -> None:
    held, done = [], threading.Barrier(6)

    def attempt(number: int) -> None:
        try:
            with lease(location, "runs/pr"):
                held.append(number)
                done.wait()
        except RunError:
            done.wait()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(attempt, range(6)))
    assert len(held) == 1


def test_a_holder_on_another_machine_is_watched_for_its_heartbeat(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.05)
    monkeypatch.setattr(module, "ABANDONED_AFTER_S", 1.5)
    told: list[str] = []
    with lease(location, "runs/pr"):
        pass
    first = holder(location)
    assert said(first) == "held"
    elsewhere(location, heartbeat=3)
    first.kill()
    first.communicate()

    def beat() -> None:
        time.sleep(0.5)
        elsewhere(location, heartbeat=4)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(beat)
        with pytest.raises(RunError, match="in use by"), lease(location, "runs/pr", on_wait=told.append):
            pass
    began = time.monotonic()
    with lease(location, "runs/pr", on_wait=told.append):
        assert 1.4 < time.monotonic() - began < 5
    assert [sentence.count("waiting up to 2 s for a sign that it is alive") for sentence in told] == [1, 1]


@pytest.mark.slow
def test_a_holder_that_stood_still_until_another_took_over_ends(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)

    def is_taken_over() -> None:
        elsewhere(location, token="another", host="elsewhere")
        time.sleep(20)  # interrupted

    pattern = rf"runs/pr was taken over by process {os.getpid()} on elsewhere"
    with pytest.raises(RunError, match=pattern), lease(location, "runs/pr"):
        is_taken_over()
    assert [h["token"] for h in storage.read_json(location)["holders"]] == ["another"]


def test_a_heartbeat_brings_a_removed_lease_back(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.1)
    with lease(location, "runs/pr"):
        storage.delete(location)
        while not storage.exists(location):
            time.sleep(0.05)
        assert len(storage.read_json(location)["holders"]) == 1


def test_a_damaged_lease_is_named(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{")
    with pytest.raises(InputError, match=r"lease\.json is damaged"), lease(str(tmp_path / "lease.json"), "runs/pr"):
        pass


def test_a_number_that_another_process_got_is_not_the_holder() -> None:
    me = this_process()
    assert not me.has_ended()
    assert ProcessIdentity(me.machine, me.pid, "1").has_ended()
    assert not ProcessIdentity("another", me.pid, "1").has_ended()
    ended = subprocess.Popen(["true"])
    identity = ProcessIdentity(me.machine, ended.pid, "")
    while not identity.has_ended():  # a zombie, until it is waited for
        time.sleep(0.01)
    ended.wait()
    assert identity.has_ended()


def test_a_lock_of_a_killed_writer_of_this_machine_does_not_delay_an_update(tmp_path: Path) -> None:
    location = tmp_path / "x"
    code = (
        "import sys, time\nfrom momkd_ray.storage.local_lock import exclusive_file\n"
        "with exclusive_file(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".x.lock")], stdout=subprocess.PIPE, text=True
    )
    assert said(writer) == "held"
    writer.kill()
    writer.wait()
    began = time.monotonic()
    storage.update(str(location), lambda _: b"1")
    assert time.monotonic() - began < 2
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    json.loads(location.read_text())


def test_a_lease_that_could_not_be_given_back_does_not_bind_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, in a notebook whose process lives on."""
    location, folder = str(tmp_path / "lease.json"), str(tmp_path)

    def full(*arguments: object) -> None:
        raise RunError("could not write: No space left on device")

    def fails() -> None:
        with lease(location, folder):
            monkeypatch.setattr(storage, "update", full)
            full()

    with pytest.raises(RunError, match="No space left"):
        fails()
    monkeypatch.undo()
    with lease(location, folder), pytest.raises(RunError, match="is in use by"), lease(location, folder):
        pass
