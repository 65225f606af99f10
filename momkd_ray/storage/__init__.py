"""Files at a local path or an `s3://bucket/key` URI: read whole or in part, and written so that they appear only whole.

S3 takes its endpoint and credentials from the environment (`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, ...). Every request is repeated while the service is slow, broken or away, for
`MOMKD_RAY_S3_PATIENCE_S` seconds (120 by default).

Every function raises, besides what it names itself:
    InputError: the location cannot be used: another scheme, no such bucket, no credentials, no permission.
    RunError: S3 did not recover within that time. It is never an `OSError`, which readers take for a damaged file.
"""

from __future__ import annotations

import io
import json
import posixpath
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from momkd_ray.errors import InputError
from momkd_ray.storage.backend import Backend, FileInfo, Kind
from momkd_ray.storage.local import LocalBackend

if TYPE_CHECKING:
    import pandas as pd
    from pyarrow import fs

__all__ = [
    "FileInfo",
    "absolute",
    "atomic_writer",
    "delete",
    "exists",
    "join",
    "kind",
    "list_files",
    "list_names",
    "local_path",
    "open_file",
    "pyarrow_filesystem",
    "read_buffer",
    "read_bytes",
    "read_into",
    "read_json",
    "read_range",
    "read_table",
    "read_text",
    "stat",
    "write_bytes",
    "write_json",
    "write_table",
    "write_text",
]


def _place(location: str) -> Backend:
    scheme, separator, rest = location.partition("://")
    if not separator:
        return LocalBackend(location)
    if scheme == "file":
        return LocalBackend(rest)
    if scheme == "s3":
        from momkd_ray.storage.s3 import S3Backend  # boto3 takes a third of a second to import

        return S3Backend(location)
    raise InputError(f"{location} is neither a path nor an s3:// URI")


def join(location: str, *names: str) -> str:
    """A location below another."""
    return posixpath.join(location, *names)


def absolute(location: str) -> str:
    """A local path made absolute; an `s3://` URI as it is."""
    return local_path(location) or location


def local_path(location: str) -> str | None:
    """The absolute path of a local file or folder; None on S3. For libraries that open files by themselves."""
    place = _place(location)
    return place.path if isinstance(place, LocalBackend) else None


def kind(location: str) -> Kind | None:
    """Whether a file or a folder is there; None where there is nothing. On S3 a folder is what has names below it."""
    return _place(location).kind()


def exists(location: str) -> bool:
    """Whether a file is there."""
    return kind(location) == "file"


def stat(location: str) -> FileInfo | None:
    """A file as its folder lists it; None where there is no file."""
    return _place(location).stat()


def list_files(location: str) -> list[FileInfo]:
    """The files directly inside a folder, sorted by name, in one listing; none where there is no such folder."""
    return sorted(_place(location).list_files(), key=lambda file: file.name)


def list_names(location: str) -> list[str]:
    """The names of files and folders directly inside a folder, sorted; none where there is no such folder."""
    return sorted(_place(location).list_names())


def delete(location: str) -> None:
    """Remove a file, if it is there."""
    _place(location).delete()


def atomic_writer(location: str) -> AbstractContextManager[BinaryIO]:
    """An output stream whose file takes its name only when the block ends well.

    Raises:
        RunError: also when the disk is full; the block's own stream raises it.
    """
    return _place(location).atomic_writer()


def write_bytes(location: str, content: bytes) -> None:
    """Write one whole file."""
    with atomic_writer(location) as stream:
        stream.write(content)


def write_text(location: str, text: str) -> None:
    """Write one whole UTF-8 file."""
    write_bytes(location, text.encode())


def write_json(location: str, value: Any) -> None:
    """Write one whole JSON file; NaN is refused."""
    write_text(location, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(location: str, table: pd.DataFrame) -> None:
    """Write one whole Parquet file, without the frame's index."""
    with atomic_writer(location) as stream:
        table.to_parquet(stream, index=False)


def open_file(location: str) -> BinaryIO:
    """A file to read and seek in, for `h5py.File` and `pyarrow.parquet.ParquetFile`; the caller closes it.

    On S3 small reads are answered from blocks of 256 KiB, and more is read ahead the longer reads follow each other.
    It serves one user at a time.

    Raises:
        FileNotFoundError: no file is there.
        RunError: also when the object is replaced before it is closed.
    """
    return _place(location).open_file()


def read_into(location: str, offset: int, buffer: memoryview | bytearray | np.ndarray[Any, Any]) -> None:
    """Fill a writable, contiguous buffer with the bytes from `offset` on. May be called from many threads.

    A local file stays open for the next call and is opened anew when it has been replaced. From S3, 8 MiB are read
    a request, several requests side by side.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file ends before the buffer is full.
        RunError: also when the object is replaced meanwhile.
    """
    if offset < 0:
        raise ValueError(f"a file has no byte {offset}")
    view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
    if view.nbytes:  # what is empty cannot be cast
        _place(location).read_into(offset, view.cast("B"))


def read_range(location: str, offset: int, length: int) -> memoryview:
    """`length` bytes from `offset` on, as a writable view of fresh memory.

    Raises:
        FileNotFoundError, OSError, RunError: as `read_into`.
    """
    buffer = np.empty(length, np.uint8)
    read_into(location, offset, buffer)
    return buffer.data


def read_buffer(location: str) -> memoryview:
    """The whole file, as a writable view of fresh memory; from S3 in ranges side by side, all of one object.

    Raises:
        FileNotFoundError: no file is there.
        RunError: also when the object is replaced meanwhile.
    """
    return _place(location).read_buffer()


def read_table(location: str) -> pd.DataFrame:
    """The frame of a Parquet file that `write_table` wrote."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(read_bytes(location)))


def read_bytes(location: str) -> bytes:
    """The whole file; `FileNotFoundError` where there is none."""
    return bytes(read_buffer(location))


def read_text(location: str) -> str:
    """The whole UTF-8 file."""
    return read_bytes(location).decode()


def read_json(location: str) -> Any:
    """The value of a JSON file."""
    return json.loads(read_text(location))


def pyarrow_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The Arrow file system of a location, and the path inside it, for Ray, which reads and writes through Arrow.

    On S3 it repeats failed requests for about as long as this module does, also after it was pickled.
    """
    from momkd_ray.storage.arrow_filesystem import filesystem

    return filesystem(_place(location))
