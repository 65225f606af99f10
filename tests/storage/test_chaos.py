"""Bad days: full and failing disks, and two commands at a time; `pytest -m slow -s` prints them.

Each ends in one sentence with exit code 3, leaves nothing half-written, and the same command goes on afterwards.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from support.command_line import outcome
from support.hooks import hooked
from support.runs import changed, comparable, crossval, finished, momkd, saved

from momkd_ray.bags.store import BagStore
from momkd_ray.config.load import Config
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.run.prepare import open_cohort

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parents[1] / "support" / "failing_io.c"
HALF_WRITTEN = ("*.tmp", "*.lock*")


def told(happening: str, code: int, sentence: str) -> None:
    print(f"{happening}\n    exit code {code}: {sentence}")


def half_written(folder: Path) -> list[str]:
    return [path.name for pattern in HALF_WRITTEN for path in folder.rglob(pattern)]


class SmallDisk:
    """A file system of a few megabytes, which a ballast fills."""

    def __init__(self, at: Path) -> None:
        self.at, self.ballast = at, at / "ballast"

    def leave(self, free: int) -> None:
        self.empty()
        room = shutil.disk_usage(self.at).free - free
        self.ballast.write_bytes(bytes(room))

    def empty(self) -> None:
        self.ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    at = tmp_path / "disk"
    at.mkdir()
    mounted = os.getuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(at)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system needs root; failing_io.c has a disk that is full for checkpoints")
    yield SmallDisk(at)
    subprocess.run(["umount", "-l", str(at)], check=True)


def test_a_full_disk_ends_ingest_folds_and_report_until_there_is_room(
    tiny_config: Config, disk: SmallDisk, tmp_path: Path, ray_cluster: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(tiny_config, run__dir=str(disk.at / "run"), train__epochs=3)
    path, run = str(saved(config, tmp_path)), disk.at / "run"

    def fails(happening: str, *arguments: str, cancels: bool = False) -> None:
        code = outcome(*arguments)
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert code == 3, sentence
        assert "attempts (total backoff" not in sentence
        assert os.strerror(errno.ENOSPC) in sentence
        ends = time.monotonic() + 60
        # tasks beside the one that failed first may still be removing theirs; Ray may also end one before it has
        while half_written(run) and not cancels:
            assert time.monotonic() < ends, half_written(run)
            time.sleep(0.1)
        with capsys.disabled():
            told(happening, code, sentence)

    disk.leave(20_000)
    fails("the disk is full while bags are stored", "ingest", "--config", path, cancels=True)
    assert not (run / "bags" / "manifest.json").exists()
    disk.empty()
    assert outcome("ingest", "--config", path) == 0
    assert not half_written(run), "the next command removes what a task that Ray has ended left behind"
    disk.leave(20_000)
    fails("the disk is full while folds are trained", "crossval", "--config", path)
    assert not (run / "metrics.json").exists()
    disk.empty()
    assert outcome("crossval", "--config", path) == 0
    report = (run / "report.html").read_bytes()
    disk.leave(20_000)
    fails("the disk is full while the report is written", "report", "--run", str(run))
    assert (run / "report.html").read_bytes() == report
    disk.empty()
    assert outcome("report", "--run", str(run)) == 0
    with capsys.disabled():
        told("there is room again: the same commands", 0, "done")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("failing_io.c needs a C compiler")
    built = tmp_path_factory.mktemp("library") / "failing_io.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE), "-ldl"], check=True)
    return built


def failing(library: Path, calls: str, path: str, number: int, times: int = -1) -> dict[str, str]:
    variables = {"LD_PRELOAD": str(library), "FAIL_CALLS": calls, "FAIL_PATH": path}
    return hooked("support.hooks.give_up_soon") | variables | {"FAIL_ERRNO": str(number), "FAIL_TIMES": str(times)}


def half_of(config: Config, rows: slice, folder: Path) -> str:
    """A configuration of some of the slides."""
    folder.mkdir()
    slides = pd.read_csv(str(config.cohort.slides))
    slides.iloc[rows].to_csv(folder / "slides.csv", index=False)
    half = changed(config, cohort__slides=str(folder / "slides.csv"), run__dir=str(folder / "run"))
    return str(saved(half, folder))


def test_failing_disks_and_two_commands_at_a_time_change_no_number(
    tiny_config: Config, library: Path, tmp_path: Path, ray_cluster: Connection
) -> None:
    run, store = tmp_path / "broken", tmp_path / "store"
    config = changed(tiny_config, run__dir=str(run), store__uri=str(store))
    command = ("crossval", "--config", str(saved(config, tmp_path / "c")))

    def fails(happening: str, words: str, number: int, *arguments: str, variables: dict[str, str]) -> None:
        process = momkd(*arguments, variables=variables)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 3, output
        assert "Traceback" not in output
        sentence = output.strip().splitlines()[-1]
        assert sentence.startswith("momkd-ray: ")
        assert "attempts (total backoff" not in sentence
        assert words in sentence
        assert os.strerror(number) in sentence
        assert not half_written(tmp_path)
        told(happening, 3, sentence)

    reading = failing(library, "read", "/features/", errno.EIO)
    ingest = ("ingest", "--on-error", "skip", "--config", command[2])
    fails("a disk fails under the feature files", "/features/", errno.EIO, *ingest, variables=reading)
    assert not (store / "manifest.json").exists(), "no slide was left out"

    overlapping = {"a": slice(-4), "b": slice(4, None)}
    halves = [half_of(config, rows, tmp_path / name) for name, rows in overlapping.items()]
    both = [momkd("ingest", "--config", half) for half in halves]
    for process in both:
        told("two ingests into one store", 0, finished(process).strip().splitlines()[-1])
    slides = set(open_cohort(config, ProgressReporter()).slides["slide_id"])
    assert set(BagStore.open(str(store)).slides.index) == slides

    stale = failing(library, "read", "/store/part-", errno.ESTALE)
    fails("file handles of the store stay stale", "/store/part-", errno.ESTALE, *command, variables=stale)
    full = failing(library, "write", "/checkpoints/", errno.ENOSPC)
    fails("the disk is full at a checkpoint", "/checkpoints/", errno.ENOSPC, *command, variables=full)
    assert not (run / "metrics.json").exists()

    first = momkd(*command, variables=failing(library, "read", "/store/part-", errno.ESTALE, times=3))
    while not (run / "lease.json").exists() or f'"pid": {first.pid}' not in (run / "lease.json").read_text():
        assert first.poll() is None, first.communicate()[0]
    second = momkd(*command)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 3, output
    assert f"is in use by process {first.pid} on " in output
    told("a second run in the directory", 3, output.strip().splitlines()[-1])
    told("stale handles that pass, the same command", 0, finished(first).strip().splitlines()[-1])

    crossval(tiny_config)
    metrics, predictions = comparable(str(run))
    expected, expected_predictions = comparable(tiny_config.run.dir)
    assert metrics == expected
    pd.testing.assert_frame_equal(predictions, expected_predictions)
