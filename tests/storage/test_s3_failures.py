"""Faults of S3 that pass are survived, those that do not end in one sentence, and nothing half-done is seen."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet as pq
from support.s3 import KEYS_A_PAGE, PART, Fault, FaultyProxy, Kind, S3Server, content_of, written

from momkd_ray import storage
from momkd_ray.cli import main
from momkd_ray.errors import InputError, RunError, input_error_within, run_error_within
from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.storage import s3_client as connection
from momkd_ray.storage import s3_download as download
from momkd_ray.storage import s3_retry as patience
from momkd_ray.storage import s3_upload as upload

LONG = 3 * PART + 5
FAULTS: dict[str, list[dict[str, Any]]] = {
    "slow down": [{"kind": "status", "every": 2}],
    "broken": [{"kind": "status", "every": 3, "status": 500, "code": "InternalError"}],
    "too many": [{"kind": "status", "every": 2, "status": 429, "code": "TooManyRequests"}],
    "timed out": [{"kind": "status", "every": 2, "method": "PUT", "status": 400, "code": "RequestTimeout"}],
    "a burst": [{"kind": "status", "times": 6}],
    "reset": [{"kind": "reset", "every": 2}],
    "lost answers": [{"kind": "lost", "every": 2}],
    "reset in the body": [{"kind": "cut", "every": 2, "method": "GET", "at_byte": 150}],
    "closed in the body": [{"kind": "cut", "every": 2, "method": "GET", "at_byte": 150, "reset": False}],
    "reset at the end": [{"kind": "cut", "every": 3, "method": "GET", "at_byte": PART - 1}],
    "slow": [{"kind": "trickle", "seconds": 0.2, "every": 3}, {"kind": "late", "seconds": 0.2, "every": 4}],
    "all at once": [
        {"kind": "status", "every": 5},
        {"kind": "reset", "every": 7},
        {"kind": "lost", "every": 4},
        {"kind": "cut", "every": 3, "method": "GET", "at_byte": 20_000},
    ],
}


def everything(folder: str) -> None:
    """Write, list, read in every way, remove; all must be as without faults."""
    for size in (0, LONG):
        place, content = f"{folder}/{size}", content_of(size)
        written(place, content)
        assert storage.read_buffer(place) == content
        with storage.open_file(place) as file:
            assert file.read(5) == content[:5]
            assert file.read() == content[5:]
        assert storage.read_range(place, size // 3, size // 2) == content[size // 3 : size // 3 + size // 2]
        assert storage.kind(place) == "file"
    assert [file.size for file in storage.list_files(folder)] == [0, LONG]
    assert storage.list_names(folder) == ["0", str(LONG)]
    storage.delete(f"{folder}/0")
    assert not storage.exists(f"{folder}/0")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_is_survived(
    s3_server: S3Server, s3_proxy: FaultyProxy, small_parts: None, quick: None, name: str
) -> None:
    faults = [s3_proxy.inject(**options) for options in FAULTS[name]]
    everything(f"{s3_server.uri}/folder")
    assert all(fault.injected >= 2 for fault in faults)
    assert s3_server.keys == [f"folder/{LONG}"]


def test_a_stalled_server_is_asked_again(
    s3_server: S3Server, s3_proxy: FaultyProxy, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connection, "HASTY_READ_TIMEOUT_S", 0.3)
    place = f"{s3_server.uri}/x"
    storage.write_text(place, "text")
    s3_proxy.inject("late", seconds=30, times=2)
    began = time.monotonic()
    assert storage.read_text(place) == "text"
    assert 0.6 < time.monotonic() - began < 10


def test_a_server_that_comes_back_is_waited_for(
    s3_server: S3Server, s3_proxy: FaultyProxy, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, content = f"{s3_server.uri}/x", content_of(4 * PART)
    back = s3_proxy.away(1.0)
    written(place, content)
    back.join()
    back = s3_proxy.away(1.0)
    assert storage.read_buffer(place) == content
    back.join()


def operations(folder: str) -> dict[str, Callable[[], object]]:
    return {
        "read": lambda: storage.read_buffer(f"{folder}/x"),
        "range": lambda: storage.read_range(f"{folder}/x", 0, 3 * PART),
        "list": lambda: storage.list_names(folder),
        "look": lambda: storage.exists(f"{folder}/x"),
        "write": lambda: written(f"{folder}/y", content_of(3 * PART)),
        "short write": lambda: storage.write_text(f"{folder}/y", "short"),
        "remove": lambda: storage.delete(f"{folder}/x"),
    }


@pytest.mark.parametrize("name", operations(""))
def test_an_outage_longer_than_patience_is_one_run_error(
    s3_server: S3Server, s3_proxy: FaultyProxy, small_parts: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    storage.write_bytes(f"{s3_server.uri}/x", content_of(3 * PART))
    monkeypatch.setenv(patience.RETRY_SECONDS_VARIABLE, "0.5")
    monkeypatch.setattr(upload, "ABORT_RETRY_S", 0.2)
    s3_proxy.inject("status")
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"{s3_server.uri}.* \d attempts in \d s failed, the last with: 503 S") as told:
        operations(s3_server.uri)[name]()
    assert 0.4 < time.monotonic() - began < 3
    assert not isinstance(told.value, OSError)
    assert len(str(told.value).splitlines()) == 1
    s3_proxy.heal()
    assert s3_server.keys == ["x"]


def test_an_outage_does_not_make_a_slide_look_damaged(
    s3_server: S3Server, s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{s3_server.uri}/slide.h5"
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file.create_dataset("features", data=np.arange(3_000 * 64, dtype=np.float32).reshape(-1, 64), chunks=(1, 64))
        file["coords"] = np.arange(6_000, dtype=np.int32).reshape(-1, 2)
    storage.write_bytes(place, (tmp_path / "slide.h5").read_bytes())
    monkeypatch.setenv(patience.RETRY_SECONDS_VARIABLE, "0.2")
    for answered in range(2):
        s3_proxy.inject("status", spared=answered)
        with pytest.raises(RunError, match="503"):
            read_bag(place, "slide", Recipe())
        s3_proxy.heal()
    assert read_bag(place, "slide", Recipe()).n_patches == 3_000
    storage.write_table(place, pd.DataFrame(np.random.default_rng(0).random((100_000, 9))))
    with storage.open_file(place) as source:
        table = pq.ParquetFile(source)
        s3_proxy.inject("status")
        with pytest.raises(RunError, match="503"):
            table.read()


def test_an_outage_ends_a_command_with_one_sentence(
    s3_server: S3Server, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(patience.RETRY_SECONDS_VARIABLE, "0.3")
    s3_proxy.go_away()
    with pytest.raises(SystemExit) as caught:
        main(["report", "--run", f"{s3_server.uri}/run"])
    assert caught.value.code == 3
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"could not read {s3_server.uri}/run/metrics.json" in told


def test_what_will_never_be_granted_is_not_asked_twice(s3_server: S3Server, s3_proxy: FaultyProxy) -> None:
    for read in (storage.read_bytes, storage.open_file):
        before = s3_proxy.count()
        with pytest.raises(FileNotFoundError):
            read(f"{s3_server.uri}/nothing")
        assert s3_proxy.count() == before + 1
    s3_proxy.inject("status", status=403, code="AccessDenied")
    for operation in operations(s3_server.uri).values():
        with pytest.raises(InputError, match=rf"{s3_server.uri}.*denies access \(403.*credentials"):
            operation()
    s3_proxy.heal()
    s3_proxy.inject("status", status=400, code="InvalidArgument")
    with pytest.raises(InputError, match=r"refuses the request \(400 InvalidArgument"):
        storage.write_text(f"{s3_server.uri}/x", "")


def test_buckets_and_credentials_that_cannot_be_used_are_named(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for operation in operations("s3://no-such-bucket/x").values():
        with pytest.raises(InputError, match="no bucket 'no-such-bucket'"):
            operation()
    for bare in (s3_server.uri, f"{s3_server.uri}/", f"{s3_server.uri}/folder/"):
        with pytest.raises(InputError, match=f"{bare} is a (bucket|folder), not a file"):
            storage.write_text(bare, "")
    assert storage.kind(s3_server.uri) == "folder"
    with pytest.raises(InputError, match="names no bucket"):
        storage.exists("s3:///x")
    with pytest.raises(InputError, match="does not allow this name of a bucket or key"):
        storage.list_names("s3://not a bucket/x")
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL"):
        storage.list_names(f"{s3_server.uri}/x?endpoint_override=localhost")
    monkeypatch.setenv(patience.RETRY_SECONDS_VARIABLE, "long")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(InputError, match="MOMKD_RAY_S3_PATIENCE_S is 'long'"):
        storage.list_names(s3_server.uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    with pytest.raises(InputError, match="nonsense"):
        storage.list_names(s3_server.uri)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(InputError, match=r"credentials are missing.*AWS_ACCESS_KEY_ID"):
        storage.list_names(s3_server.uri)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match="nobody"):
        storage.list_names(s3_server.uri)


def test_the_endpoint_for_s3_alone_goes_before_the_one_for_all(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
    place = f"{s3_server.uri}/x"
    storage.write_text(place, "text")
    file_system, path = storage.pyarrow_filesystem(place)
    with file_system.open_input_stream(path) as stream:
        assert stream.read() == b"text"


def replaced_after(fault: Fault, change: Callable[[], object]) -> threading.Thread:
    """Make the change as soon as the fault has struck."""

    def wait() -> None:
        while not fault.injected:
            time.sleep(0.01)
        change()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_an_object_replaced_while_it_is_read_is_noticed(
    s3_server: S3Server, s3_proxy: FaultyProxy, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 1.0)
    place, content = f"{s3_server.uri}/x", content_of(5 * PART)

    def replace() -> None:
        s3_server.client.put_object(Bucket=s3_server.bucket, Key="x", Body=content[::-1])

    readings: list[Callable[[], object]] = [
        lambda: storage.read_buffer(place),
        lambda: storage.read_range(place, 3, 4 * PART),
    ]
    for read in readings:
        storage.write_bytes(place, content)
        # one of the later pieces must be asked for again, after the replacement
        s3_proxy.heal()
        thread = replaced_after(s3_proxy.inject("status", method="GET", every=3, times=1), replace)
        with pytest.raises(RunError, match=f"{place} was replaced while it was read"):
            read()
        thread.join()
    storage.write_bytes(place, content)
    with storage.open_file(place) as file:
        assert file.read(10) == content[:10]
        replace()
        with pytest.raises(RunError, match="was replaced"):
            file.read()


def test_a_completion_whose_answer_is_lost_is_a_completion(
    s3_server: S3Server, s3_proxy: FaultyProxy, small_parts: None, quick: None
) -> None:
    lost = s3_proxy.inject("lost", method="POST", path="uploadId=", times=1)
    place = f"{s3_server.uri}/x"
    written(place, content_of(3 * PART))
    assert lost.injected == 1
    assert storage.read_buffer(place) == content_of(3 * PART)
    # another's object under the name is not taken for ours
    s3_proxy.inject("status", method="POST", path="uploadId=", status=404, code="NoSuchUpload")
    with pytest.raises(RunError, match="NoSuchUpload"):
        written(place, content_of(4 * PART))


def test_a_failing_part_ends_the_writing(
    s3_server: S3Server, s3_proxy: FaultyProxy, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.RETRY_SECONDS_VARIABLE, "0.1")
    s3_proxy.inject("status", method="PUT", path="partNumber=2")
    with pytest.raises(RunError, match="could not write"):
        written(f"{s3_server.uri}/x", content_of(9 * PART))
    assert s3_proxy.count("PUT", "partNumber=4") == 0
    assert s3_server.keys == []
    assert not s3_server.client.list_multipart_uploads(Bucket=s3_server.bucket).get("Uploads")


def test_long_listings_come_whole(s3_server: S3Server, s3_proxy: FaultyProxy, quick: None) -> None:
    names = [f"{number:04d}" for number in range(3 * KEYS_A_PAGE + 1)]
    client = s3_server.client
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: client.put_object(Bucket=s3_server.bucket, Key=f"many/{n}", Body=b""), names))
    client.put_object(Bucket=s3_server.bucket, Key="many/", Body=b"")  # as consoles make folders
    s3_proxy.inject("status", every=2)
    assert storage.list_names(f"{s3_server.uri}/many") == names
    assert [file.name for file in storage.list_files(f"{s3_server.uri}/many/")] == names
    assert storage.list_names(s3_server.uri) == ["many"]
    assert s3_proxy.count("GET", "continuation-token") >= 6


def test_hdf5_and_parquet_take_few_requests(s3_server: S3Server, s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    place = f"{s3_server.uri}/slide.h5"
    features = np.random.default_rng(0).random((2_000, 512)).astype(np.float32)
    with h5py.File(tmp_path / "slide.h5", "w") as file:
        file.create_dataset("features", data=features, chunks=(1, 512))
        file["coords"] = np.zeros((2_000, 2), np.int32)
    storage.write_bytes(place, (tmp_path / "slide.h5").read_bytes())
    with storage.open_file(place) as source, h5py.File(source) as file:
        assert file["features"].shape == (2_000, 512)
        assert s3_proxy.count("GET") <= 3
        assert (file["features"][()] == features).all()
    assert s3_proxy.count("GET") <= 12  # 4 MB, a patch a chunk
    storage.write_table(f"{s3_server.uri}/t.parquet", pd.DataFrame(features))
    before = s3_proxy.count("GET")
    with storage.open_file(f"{s3_server.uri}/t.parquet") as source:
        assert pq.ParquetFile(source).metadata.num_rows == 2_000
    assert s3_proxy.count("GET") <= before + 2


def test_arrow_is_patient_too_also_after_it_was_pickled(s3_server: S3Server, s3_proxy: FaultyProxy) -> None:
    place = f"{s3_server.uri}/a b/x"
    storage.write_text(place, "text")
    file_system, path = storage.pyarrow_filesystem(place)
    assert path == f"{s3_server.bucket}/a b/x"
    file_system = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(file_system))))
    s3_proxy.inject("status", times=3)  # more than it survives by default
    with file_system.open_input_stream(path) as stream:
        assert stream.read() == b"text"


def test_an_outage_is_found_inside_what_ray_raises() -> None:
    from ray.exceptions import RayTaskError

    outage = RunError("S3 is away")
    raised = RayTaskError("task", "Traceback ...", outage).as_instanceof_cause()
    error = KeyError("x")
    error.__cause__ = raised
    assert run_error_within(error) is outage
    assert input_error_within(error) is None


@pytest.mark.parametrize("kind", ["late", "trickle"])
def test_pieces_that_hang_or_crawl_are_asked_for_again(
    s3_server: S3Server,
    s3_proxy: FaultyProxy,
    quick: None,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
) -> None:
    monkeypatch.setattr(connection, "HASTY_READ_TIMEOUT_S", 3)
    monkeypatch.setattr(download, "SLOW_S", 0.3)
    monkeypatch.setattr(download, "_SLICE_BYTES", PART // 16)
    place, content = f"{s3_server.uri}/x", content_of(5 * PART)
    storage.write_bytes(place, content)
    fault = s3_proxy.inject(kind, seconds=30, times=2, method="GET")
    before = s3_proxy.count("GET")
    assert storage.read_range(place, 7, 4 * PART) == content[7 : 7 + 4 * PART]
    assert fault.injected == 2
    assert s3_proxy.count("GET") == before + 4 + 2
