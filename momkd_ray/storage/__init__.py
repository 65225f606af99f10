"""Reads and atomically writes files at a local path or an `s3://bucket/key` URI.

S3 takes its endpoint and credentials from the environment (`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, ...). A request that fails for a passing reason is retried for `MOMKD_RAY_S3_PATIENCE_S` seconds
(120 by default).

Every function raises, besides what it names itself:
    InputError: the location cannot be used: another scheme, no such bucket, no credentials, no permission.
    RunError: S3 did not recover within that time. It is never an `OSError`, which readers take for a damaged file.
"""

from __future__ import annotations

import io
import json
import posixpath
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from momkd_ray.credentials import has_credentials, redact
from momkd_ray.errors import InputError
from momkd_ray.storage.backend import Backend, FileInfo, Kind
from momkd_ray.storage.local import LocalBackend

if TYPE_CHECKING:
    import pandas as pd
    from pyarrow import fs

__all__ = [
    "FileInfo",
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
    "remove_temporary",
    "stat",
    "update",
    "write_bytes",
    "write_json",
    "write_table",
    "write_text",
]


def _backend(location: str) -> Backend:
    scheme, separator, rest = location.partition("://")
    if not separator:
        return LocalBackend(location)
    if scheme == "file":
        return LocalBackend(rest)
    if has_credentials(location):
        raise InputError(
            f"{redact(location)} contains credentials: write s3://bucket/key, and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if scheme == "s3":
        from momkd_ray.storage.s3 import S3Backend  # boto3 takes a third of a second to import

        return S3Backend(location)
    raise InputError(f"{location} is neither a path nor an s3:// URI; use one of these")


def join(location: str, *names: str) -> str:
    """Appends names to a location."""
    return posixpath.join(location, *names)


def local_path(location: str) -> str | None:
    """Returns the absolute path of a local location, for libraries that open files themselves; None on S3."""
    backend = _backend(location)
    return backend.path if isinstance(backend, LocalBackend) else None


def kind(location: str) -> Kind | None:
    """Tells whether a location is a file or a folder; None if neither. On S3 a folder is a prefix of keys."""
    return _backend(location).kind()


def exists(location: str) -> bool:
    """Tells whether there is a file."""
    return kind(location) == "file"


def stat(location: str) -> FileInfo | None:
    """Returns size and version stamp of a file; None if there is no file."""
    return _backend(location).stat()


def list_files(location: str) -> list[FileInfo]:
    """Lists the files directly in a folder, sorted by name, in one listing; empty if there is no such folder."""
    return sorted(_backend(location).list_files(), key=lambda file: file.name)


def list_names(location: str) -> list[str]:
    """Lists the names of files and folders directly in a folder, sorted; empty if there is no such folder."""
    return sorted(_backend(location).list_names())


def delete(location: str) -> None:
    """Removes a file, if it exists."""
    _backend(location).delete()


def remove_temporary(location: str, *, below: bool = False) -> list[FileInfo]:
    """Removes the temporary files of killed writers in a folder, and returns them.

    On S3 these are the parts of uploads that were not completed. A writer that lives would fail, so the caller must
    know that there is none; only a lease's own temporary files stay.

    Args:
        location: the folder.
        below: whether also in all folders below it.
    """
    return _backend(location).remove_temporary(below)


def atomic_writer(location: str) -> AbstractContextManager[BinaryIO]:
    """Opens an output stream whose file appears under its name only when the block ends without an exception.

    Raises:
        RunError: also when the disk is full; writing to the stream raises it.
    """
    return _backend(location).atomic_writer()


def write_bytes(location: str, content: bytes) -> None:
    """Writes a file atomically."""
    with atomic_writer(location) as stream:
        stream.write(content)


def update(location: str, change: Callable[[bytes | None], bytes]) -> None:
    """Replaces a file by what `change` makes of its content, so that no concurrent update is lost.

    Args:
        location: a small file, all of whose writers use this function.
        change: called with the content, None if there is no file. On S3 it is called again if another writer was
            first, or with its own result if the answer to a request was lost, so it must be idempotent.

    Raises:
        RunError: also when another writer holds the file for minutes.
    """
    _backend(location).update(change)


def write_text(location: str, text: str) -> None:
    """Writes a UTF-8 file atomically."""
    write_bytes(location, text.encode())


def write_json(location: str, value: Any) -> None:
    """Writes a JSON file atomically; NaN raises `ValueError`."""
    write_text(location, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(location: str, table: pd.DataFrame) -> None:
    """Writes a data frame, without its index, as a Parquet file, atomically."""
    with atomic_writer(location) as stream:
        table.to_parquet(stream, index=False)


def open_file(location: str) -> BinaryIO:
    """Opens a file for reading and seeking, as h5py and pyarrow need it; the caller closes it.

    On S3 small reads are served from cached blocks of 256 KiB, and sequential reads prefetch growing ranges. It is not
    for several threads at a time.

    Raises:
        FileNotFoundError: there is no file.
        RunError: also when the object is replaced before the file is closed.
    """
    return _backend(location).open_file()


def read_into(location: str, offset: int, buffer: memoryview | bytearray | np.ndarray[Any, Any]) -> None:
    """Fills a writable, contiguous buffer with the bytes from `offset` on. Thread-safe.

    A local file stays open for the next call and is reopened if it has been replaced. S3 is read in concurrent
    requests of 8 MiB.

    Raises:
        FileNotFoundError: there is no file.
        OSError: the file ends before the buffer is full.
        RunError: also when the object is replaced during the read.
    """
    if offset < 0:
        raise ValueError(f"a file has no byte {offset}")
    view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
    if view.nbytes:  # an empty view cannot be cast
        _backend(location).read_into(offset, view.cast("B"))


def read_range(location: str, offset: int, length: int) -> memoryview:
    """Reads `length` bytes from `offset` on into new, writable memory.

    Raises:
        FileNotFoundError, OSError, RunError: as `read_into`.
    """
    buffer = np.empty(length, np.uint8)
    read_into(location, offset, buffer)
    return buffer.data


def read_buffer(location: str) -> memoryview:
    """Reads a file into new, writable memory; from S3 in concurrent ranges of one version of the object.

    Raises:
        FileNotFoundError: there is no file.
        RunError: also when the object is replaced during the read.
    """
    return _backend(location).read_buffer()


def read_table(location: str) -> pd.DataFrame:
    """Reads the data frame of a Parquet file that `write_table` wrote."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(read_bytes(location)))


def read_bytes(location: str) -> bytes:
    """Reads a file; raises `FileNotFoundError` if there is none."""
    return bytes(read_buffer(location))


def read_text(location: str) -> str:
    """Reads a UTF-8 file."""
    return read_bytes(location).decode()


def read_json(location: str) -> Any:
    """Reads the value of a JSON file."""
    return json.loads(read_text(location))


def pyarrow_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """Returns the Arrow file system of a location and the path in it, for Ray, which reads and writes through Arrow.

    On S3 it retries failed requests for about as long as this package does, also after pickling.
    """
    from momkd_ray.storage.arrow_filesystem import filesystem

    return filesystem(_backend(location))
