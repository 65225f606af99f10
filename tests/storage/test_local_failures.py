"""A failing machine, disk or mount is never taken for a damaged file: it passes, or ends the run with what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.bags import EXACT, listed, stored, write_h5

from momkd_ray import storage
from momkd_ray.bags.ingest import ingest
from momkd_ray.bags.store import BagStore
from momkd_ray.errors import InputError, RunError
from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.storage import local_retry
from momkd_ray.storage.local import _cannot_write, _OutputFile

MACHINE = [errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EMFILE, errno.ENOTCONN, errno.ENOMEM]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_retry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(local_retry, "LOCAL_RETRY_S", 0.2)


class Failing:
    """A function of `os` that fails with an errno, `times` times or for ever, where it is about a path."""

    def __init__(self, real: Callable[..., Any], number: int, times: float) -> None:
        self.real, self.number, self.left = real, number, times

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*arguments, **options)


OPERATIONS: dict[str, Callable[[str], Any]] = {
    "preadv": lambda path: bytes(storage.read_range(path, 1, 3)),
    "stat": storage.stat,
    "scandir": lambda path: storage.list_files(os.path.dirname(path)),
    "open": lambda path: storage.open_file(path).read(),
}


@pytest.mark.parametrize("number", MACHINE)
@pytest.mark.parametrize("function", OPERATIONS)
def test_a_failure_that_passes_is_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    expected = OPERATIONS[function](str(path))
    monkeypatch.setattr(os, function, Failing(getattr(os, function), number, 2))
    assert OPERATIONS[function](str(path)) == expected


@pytest.mark.parametrize("number", MACHINE)
@pytest.mark.parametrize("function", OPERATIONS)
def test_a_failure_that_stays_ends_the_run_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    monkeypatch.setattr(os, function, Failing(getattr(os, function), number, float("inf")))
    with pytest.raises(RunError, match=rf"could not .*{tmp_path}.*{os.strerror(number)} \(\d+ attempts.*run the same"):
        OPERATIONS[function](str(path))


def test_absence_is_not_a_failure(tmp_path: Path) -> None:
    assert storage.stat(str(tmp_path / "none")) is None
    assert storage.kind(str(tmp_path / "file" / "none")) is None
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "none"))


def test_a_store_on_a_failing_disk_is_not_damaged(
    tmp_path: Path, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "store")
    stored(listed([write_h5(tmp_path / "s.h5")]), uri, EXACT)
    store = BagStore.open(uri)
    expected = store.read("s").features
    monkeypatch.setattr(os, "preadv", Failing(os.preadv, errno.ESTALE, 2))
    np.testing.assert_array_equal(BagStore.open(uri).read("s").features, expected)
    monkeypatch.setattr(os, "preadv", Failing(os.preadv, errno.ESTALE, float("inf")))
    with pytest.raises(RunError, match=r"part-.*Stale file handle"):
        store.read("s")
    part = next(Path(uri).glob("*.parquet"))
    monkeypatch.undo()
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match="missing or damaged"):
        store.read("s")


@pytest.mark.parametrize("raised", [OSError(errno.EIO, "x"), OSError("Can't read (file read failed: errno = 116, x)")])
def test_a_feature_file_on_a_failing_disk_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: OSError
) -> None:
    path = str(write_h5(tmp_path / "s.h5"))
    expected = read_bag(path, "s", Recipe()).features
    real, failures = h5py.File, [raised, raised]

    def opened(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments, **options)

    monkeypatch.setattr(h5py, "File", opened)
    np.testing.assert_array_equal(read_bag(path, "s", Recipe()).features, expected)
    failures += [raised] * 10**4
    with pytest.raises(RunError, match=r"could not read .*s\.h5.*check the disk"):
        read_bag(path, "s", Recipe())


def test_a_file_open_for_writing_elsewhere_is_told_as_such_and_never_left_out(
    tmp_path: Path, ray_cluster: Connection
) -> None:
    path = write_h5(tmp_path / "s.h5")
    code = f"import h5py, sys; file = h5py.File({str(path)!r}, 'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(InputError, match=r"s\.h5 is open for writing in another program"):
            read_bag(str(path), "s", Recipe())
        # neither way of going about bad inputs leaves it out of the cohort
        uri = str(tmp_path / "store")
        write_h5(tmp_path / "t.h5", seed=1)
        slides = listed([path, tmp_path / "t.h5"])
        for on_error in ("stop", "skip"):
            with pytest.raises(RunError, match=r"1 of 2 feature files cannot be read now, .* left out: .*s\.h5"):
                ingest(slides, uri, EXACT, on_error=on_error)  # type: ignore[arg-type]
            assert not (tmp_path / "store" / "manifest.json").exists()
        writer.communicate(b"")
    assert read_bag(str(path), "s", Recipe()).n_patches == 9


def test_a_failure_that_was_retried_is_not_retried_again() -> None:
    failed = RunError("could not read s3://bucket/x: 9 attempts failed")
    failed.__cause__ = ConnectionResetError(errno.ECONNRESET, "reset")
    attempts = []

    def request() -> None:
        attempts.append(1)
        raise failed

    with pytest.raises(RunError, match="9 attempts"):
        local_retry.with_local_retries("read", "x", request)
    assert len(attempts) == 1


def test_too_little_memory_for_a_good_file_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_h5(tmp_path / "s.h5"))

    def no_memory(*arguments: Any, **options: Any) -> Any:
        return np.empty((2**45, 6), np.float32) if arguments else None

    monkeypatch.setattr(h5py, "File", no_memory)
    with pytest.raises(InputError, match="more memory than there is"):  # than any file of this size can ask for
        read_bag(path, "s", Recipe())

    def little_memory(*arguments: Any, **options: Any) -> Any:
        raise np._core._exceptions._ArrayMemoryError((9, 6), np.dtype("f4"))

    monkeypatch.setattr(h5py, "File", little_memory)
    with pytest.raises(RunError, match=r"not enough memory to read .*s\.h5"):
        read_bag(path, "s", Recipe())


def test_content_and_name_are_on_the_disk_before_the_writer_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        steps.append("folder" if os.path.isdir(target) else f"{os.path.getsize(target)} bytes")
        real_sync(descriptor)

    def replace(source: str, target: str) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    storage.write_bytes(str(tmp_path / "x"), b"1234")
    assert steps == ["4 bytes", "rename", "folder"]


@pytest.mark.parametrize("step", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_full_or_failing_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    real = os.fsync

    def failing(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        if step == "fsync":
            patched.setattr(os, "fsync", failing)
        else:
            full = _cannot_write(str(path), OSError(number, os.strerror(number)))
            patched.setattr(_OutputFile, "write", lambda self, content: (_ for _ in ()).throw(full))
        with pytest.raises(RunError, match=rf"write {path}: {os.strerror(number)}; .*run the same command"):
            storage.write_text(str(path), "new")
    assert os.fsync is real
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    storage.write_text(str(path), "new")
    assert path.read_text() == "new"
