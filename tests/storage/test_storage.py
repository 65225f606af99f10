"""Files appear whole or not at all, on a disk and on S3 alike, and places that cannot be used are named."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet as pq
from support.s3 import PART, S3Server, content_of, written

from momkd_ray import storage
from momkd_ray.errors import InputError, RunError
from momkd_ray.storage import local

SIZES = [0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1, 5 * PART - 7]


def each_place(tmp_path: Path, s3_server: S3Server) -> list[str]:
    return [str(tmp_path / "folder"), f"{s3_server.uri}/folder"]


# ---- what holds on a disk and on S3 alike


def test_what_is_read_is_what_was_written(tmp_path: Path, s3_server: S3Server, small_parts: None) -> None:
    for folder in each_place(tmp_path, s3_server):
        for size in SIZES:
            place, content = storage.join(folder, f"{size}.bin"), content_of(size)
            written(place, content)
            assert storage.read_bytes(place) == storage.read_buffer(place) == content
            with storage.open_file(place) as file:
                assert file.read() == content
                assert file.read(10) == b""
            rng = np.random.default_rng(size)
            for start, stop in np.sort(rng.integers(0, size + 1, (4, 2)), axis=1).tolist():
                assert storage.read_range(place, start, stop - start) == content[start:stop]
            with pytest.raises(OSError, match="ends before byte"):
                storage.read_range(place, size, 1)
            with pytest.raises(OSError, match="ends before byte"):
                storage.read_range(place, 0, size + 1)
        assert [(f.name, f.size) for f in storage.list_files(folder)] == sorted((f"{n}.bin", n) for n in SIZES)


def test_ranges_fill_the_arrays_they_are_read_for(tmp_path: Path, s3_server: S3Server, small_parts: None) -> None:
    values = np.random.default_rng(0).random((300, 200)).astype(np.float16)
    for folder in each_place(tmp_path, s3_server):
        place = storage.join(folder, "values")
        storage.write_bytes(place, b"head" + values.tobytes())
        read = np.empty_like(values)
        storage.read_into(place, 4, read)
        assert (read == values).all()
        storage.read_into(place, 4, read[:0])
        whole = storage.read_buffer(place)
        whole[0] = 1  # it may be written to
        with pytest.raises(ValueError, match="no byte -1"):
            storage.read_into(place, -1, read)


def test_an_opened_file_seeks_and_reads_like_one_in_memory(
    tmp_path: Path, s3_server: S3Server, small_parts: None
) -> None:
    content = content_of(20 * PART + 11)
    for folder in each_place(tmp_path, s3_server):
        place = storage.join(folder, "x")
        storage.write_bytes(place, content)
        rng, model = np.random.default_rng(5), io.BytesIO(content)
        with storage.open_file(place) as file:
            for _ in range(60):
                at, length = int(rng.integers(0, len(content) + 99)), int(rng.choice([1, 99, 9_999, PART, 3 * PART]))
                if rng.random() < 0.5:
                    assert file.seek(at) == model.seek(at)
                assert file.read(length) == model.read(length)
                assert file.tell() == model.tell()
            assert file.seek(-5, io.SEEK_END) == len(content) - 5
            assert file.seek(2, io.SEEK_CUR) == len(content) - 3
            with pytest.raises((ValueError, OSError)):
                file.seek(-1)
        with pytest.raises(ValueError, match="closed"):
            file.read(1)


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path, s3_server: S3Server, small_parts: None) -> None:
    def broken(place: str) -> None:
        with storage.atomic_writer(place) as stream:
            stream.write(b"half" * PART)
            assert storage.read_text(place) == "old"
            raise KeyboardInterrupt

    for folder in each_place(tmp_path, s3_server):
        place = storage.join(folder, "a", "b.txt")
        storage.write_text(place, "old")
        with pytest.raises(KeyboardInterrupt):
            broken(place)
        assert storage.read_text(place) == "old"
        assert storage.list_names(storage.join(folder, "a")) == ["b.txt"]
        storage.write_text(place, "new")
        assert storage.read_text(place) == "new"
    assert not s3_server.client.list_multipart_uploads(Bucket=s3_server.bucket).get("Uploads")


def test_a_killed_writer_leaves_nothing_under_the_name(tmp_path: Path, s3_server: S3Server) -> None:
    code = (
        "import sys, time\n"
        "from momkd_ray import storage\n"
        "from momkd_ray.storage import s3_upload as upload\n"
        f"upload.PART_BYTES = {PART}\n"
        "with storage.atomic_writer(sys.argv[1]) as stream:\n"
        f"    stream.write(b'x' * {4 * PART})\n"
        "    stream.flush()\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    for folder in each_place(tmp_path, s3_server):
        place = storage.join(folder, "x")
        with subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGKILL)
        assert storage.kind(place) is None
        assert "x" not in storage.list_names(folder)
    assert s3_server.keys == []


def test_what_is_there(tmp_path: Path, s3_server: S3Server) -> None:
    for folder in each_place(tmp_path, s3_server):
        place = storage.join(folder, "a", "b.txt")
        assert storage.list_names(storage.join(folder, "a")) == []
        assert storage.list_files(folder) == []
        storage.write_text(place, "1")
        storage.write_text(storage.join(folder, "a.txt"), "22")
        storage.write_text(storage.join(folder, "a-b"), "333")
        assert storage.list_names(folder) == ["a", "a-b", "a.txt"]
        assert [file.name for file in storage.list_files(folder)] == ["a-b", "a.txt"]
        kinds = {name: storage.kind(storage.join(folder, name)) for name in ("a", "a/", "a-b", "a/b.txt", "b", "a/b")}
        assert kinds == {"a": "folder", "a/": "folder", "a-b": "file", "a/b.txt": "file", "b": None, "a/b": None}
        assert storage.exists(place) and not storage.exists(storage.join(folder, "a"))
        assert storage.list_names(place) == []
        listed = storage.list_files(storage.join(folder, "a"))
        assert [storage.stat(place)] == listed
        storage.write_text(place, "2")
        assert storage.list_files(storage.join(folder, "a"))[0].stamp != listed[0].stamp
        storage.delete(place)
        storage.delete(place)
        assert storage.kind(place) is None and storage.stat(place) is None
        for read in (storage.read_bytes, storage.open_file, lambda location: storage.read_range(location, 0, 1)):
            with pytest.raises(FileNotFoundError, match=r"b\.txt"):
                read(place)


@pytest.mark.parametrize(
    "name", ["a slide.h5", "a+b.h5", "100%.h5", "a%20b.h5", "a#1.h5", "a?b=c&d.h5", "Grünwald \u2013 3.h5"]
)
def test_names_may_hold_any_character(tmp_path: Path, s3_server: S3Server, name: str) -> None:
    for folder in each_place(tmp_path, s3_server):
        place = storage.join(folder, f"of {name}", name)
        storage.write_text(place, name)
        assert storage.read_text(place) == name
        assert storage.kind(place) == "file"
        assert storage.kind(storage.join(folder, f"of {name}")) == "folder"
        assert storage.list_names(folder) == [f"of {name}"]
        assert storage.list_names(storage.join(folder, f"of {name}")) == [name]
        file_system, path = storage.pyarrow_filesystem(place)
        with file_system.open_input_stream(path) as stream:
            assert stream.read().decode() == name
        storage.delete(place)
        assert storage.list_names(folder) == [] or "://" not in folder


def test_tables_are_read_as_they_were_written(tmp_path: Path, s3_server: S3Server, small_parts: None) -> None:
    table = pd.DataFrame({"slide_id": [f"s{i}" for i in range(40_000)], "p": np.random.default_rng(0).random(40_000)})
    for folder in each_place(tmp_path, s3_server):
        place = storage.join(folder, "p.parquet")
        storage.write_table(place, table)
        pd.testing.assert_frame_equal(storage.read_table(place), table)
        with storage.open_file(place) as file:
            pd.testing.assert_frame_equal(pq.ParquetFile(file).read().to_pandas(), table)
        with storage.atomic_writer(storage.join(folder, "p.csv")) as stream:
            table.head().to_csv(stream, index=False)
        assert storage.read_text(storage.join(folder, "p.csv")) == table.head().to_csv(index=False)


def test_a_forked_child_reads_by_itself(s3_server: S3Server, small_parts: None, tmp_path: Path) -> None:
    content = content_of(4 * PART)
    places = each_place(tmp_path, s3_server)
    for place in places:
        storage.write_bytes(place, content)
        assert storage.read_range(place, 0, 4 * PART) == content
    child = os.fork()
    if not child:
        same = all(storage.read_range(place, 0, 4 * PART) == content for place in places)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert all(storage.read_range(place, 0, 4 * PART) == content for place in places)


def test_json_without_a_value_is_refused_rather_than_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(str(tmp_path / "x.json"), {"auc": float("nan")})
    assert not storage.exists(str(tmp_path / "x.json"))


# ---- the disk


def test_places_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run"):
        storage.write_text(str(tmp_path / "file" / "run" / "x"), "")
    with pytest.raises(InputError, match=r"cannot write .*directory"):
        storage.write_text(str(tmp_path), "")
    with pytest.raises(InputError, match="cannot write /proc/"):
        storage.write_text("/proc/sys/x", "")
    with pytest.raises(InputError, match="foo://bucket"):
        storage.exists("foo://bucket/x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    place = str(tmp_path / "x")
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        for size in (2**20 + 1, 5 * 2**20):
            with pytest.raises(RunError, match=r"cannot write .*/x: File too large; raise the limit of a file's size"):
                storage.write_bytes(place, bytes(size))
            assert list(tmp_path.iterdir()) == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_uri_may_hold_spaces() -> None:
    assert storage.local_path("file:///a folder/slide 1.h5") == "/a folder/slide 1.h5"
    assert storage.local_path("s3://bucket/a b") is None
    assert storage.local_path("a b") == os.path.abspath("a b")


def test_threads_read_one_local_file(tmp_path: Path) -> None:
    place, content = str(tmp_path / "x"), content_of(2**20)
    Path(place).write_bytes(content)

    def agrees(start: int) -> bool:
        return storage.read_range(place, start, 4_099) == content[start : start + 4_099]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(agrees, range(0, 2**20 - 4_099, 997)))


def test_a_replaced_local_file_is_opened_anew(tmp_path: Path) -> None:
    place = str(tmp_path / "x")
    for text in ("old!", "new!"):
        storage.write_text(place, text)
        assert bytes(storage.read_range(place, 0, 4)).decode() == text
    with open(place, "r+b") as file:
        file.truncate(2)
    with pytest.raises(OSError, match="ends before byte 4"):
        storage.read_range(place, 0, 4)
    storage.delete(place)
    with pytest.raises(FileNotFoundError):
        storage.read_range(place, 0, 2)


def test_open_local_files_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_OPEN_FILES", 4)
    monkeypatch.setattr(local, "_open_files", local._OpenFiles())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number in range(20):
            storage.write_text(str(tmp_path / f"{number}"), f"{number:04d}")
            assert storage.read_range(str(tmp_path / f"{number}"), 0, 4) == f"{number:04d}".encode()
    assert len(os.listdir("/proc/self/fd")) <= before + 4
