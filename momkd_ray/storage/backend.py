"""What can be done at a place, be it on a disk or on S3."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

Kind = Literal["file", "folder"]


@dataclass(frozen=True)
class FileInfo:
    """A file as its folder lists it: its size in bytes, and a stamp that changes when its content is written anew."""

    name: str
    size: int
    stamp: str


class Backend(Protocol):
    """A file or a folder, which need not be there; `momkd_ray.storage` says what each does."""

    def kind(self) -> Kind | None:
        """What is there."""
        ...

    def stat(self) -> FileInfo | None:
        """The file; None where there is none."""
        ...

    def list_files(self) -> list[FileInfo]:
        """The files directly below, in any order."""
        ...

    def list_names(self) -> set[str]:
        """The names of files and folders directly below."""
        ...

    def delete(self) -> None:
        """Remove the file."""
        ...

    def atomic_writer(self) -> AbstractContextManager[BinaryIO]:
        """A stream whose file appears when the block ends well."""
        ...

    def open_file(self) -> BinaryIO:
        """The file, open for reading."""
        ...

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a view of bytes, which is not empty."""
        ...

    def read_buffer(self) -> memoryview:
        """All of the file."""
        ...
