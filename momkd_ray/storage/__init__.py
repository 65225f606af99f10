"""Files at a local path or an `s3://` URI that appear only whole: written under a temporary name, then renamed."""

from __future__ import annotations

import io
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
from pyarrow import NativeFile, fs

from momkd_ray.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The Arrow file system of a path or URI, and the path inside it.

    S3 takes its endpoint and credentials from the environment (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...).
    """
    if "://" not in location:
        return fs.LocalFileSystem(), os.path.abspath(location)
    try:
        # names may hold characters that a URI does not
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(quote(location, safe="/:?&=%+,~!$'()*;[]@"))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{location} is neither a path nor an s3:// URI: {' '.join(str(error).split())}") from error
    return found


def join(location: str, *names: str) -> str:
    """A location below another."""
    return posixpath.join(location, *names)


def exists(location: str) -> bool:
    """Whether a file is there."""
    system, path = filesystem(location)
    return bool(system.get_file_info(path).type == fs.FileType.File)


@dataclass(frozen=True)
class FileInfo:
    """A file as its folder lists it; `stamp` changes when its content is written anew."""

    name: str
    size: int
    stamp: str


def files_below(location: str) -> list[FileInfo]:
    """The files directly inside a folder, sorted by name, in one listing; none where there is no such folder."""
    system, path = filesystem(location)
    found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(
        (FileInfo(i.base_name, i.size, f"{i.size}-{i.mtime_ns}") for i in found if i.type == fs.FileType.File),
        key=lambda file: file.name,
    )


def names_below(location: str) -> list[str]:
    """The names of files and folders directly inside a folder, sorted; none where there is no such folder."""
    system, path = filesystem(location)
    return sorted(info.base_name for info in system.get_file_info(fs.FileSelector(path, allow_not_found=True)))


@contextmanager
def writing(location: str) -> Iterator[NativeFile]:
    """An output stream whose file takes its name only when the block ends well."""
    system, path = filesystem(location)
    folder, name = posixpath.split(path)
    temporary = posixpath.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        system.create_dir(folder, recursive=True)
        output = system.open_output_stream(temporary)
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise InputError(f"cannot write {location}: {error.strerror or error}") from error
    try:
        with output as stream:
            yield stream
        system.move(temporary, path)
    except BaseException:
        if system.get_file_info(temporary).type == fs.FileType.File:
            system.delete_file(temporary)
        raise


def write_bytes(location: str, content: bytes) -> None:
    """Write one whole file."""
    with writing(location) as stream:
        stream.write(content)


def write_text(location: str, text: str) -> None:
    """Write one whole UTF-8 file."""
    write_bytes(location, text.encode())


def write_json(location: str, value: Any) -> None:
    """Write one whole JSON file; NaN is refused."""
    write_text(location, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(location: str, table: pd.DataFrame) -> None:
    """Write one whole Parquet file, without the frame's index."""
    with writing(location) as stream:
        table.to_parquet(stream, index=False)


def read_table(location: str) -> pd.DataFrame:
    """The frame of a Parquet file that `write_table` wrote."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(read_bytes(location)))


def read_bytes(location: str) -> bytes:
    """The whole file; `FileNotFoundError` where there is none."""
    system, path = filesystem(location)
    with system.open_input_stream(path) as stream:
        content: bytes = stream.read()
    return content


def read_text(location: str) -> str:
    """The whole UTF-8 file."""
    return read_bytes(location).decode()


def read_json(location: str) -> Any:
    """The value of a JSON file."""
    return json.loads(read_text(location))
