"""The interface that local files and S3 objects share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol

Kind = Literal["file", "folder"]
LEASE = "lease."
"""Part of the name of a lease's file (`storage.lease`), which others may be writing at any time."""


@dataclass(frozen=True)
class FileInfo:
    """Name and size in bytes of a file, and a stamp that changes whenever the file is written."""

    name: str
    size: int
    stamp: str


class Backend(Protocol):
    """A file or folder, which need not exist; the functions of `momkd_ray.storage` document the methods."""

    def kind(self) -> Kind | None:
        """Tells whether it is a file or a folder."""
        ...

    def stat(self) -> FileInfo | None:
        """Returns size and stamp of the file; None if there is none."""
        ...

    def list_files(self) -> list[FileInfo]:
        """Lists the files directly in the folder, in any order."""
        ...

    def list_names(self) -> set[str]:
        """Lists the names of files and folders directly in the folder."""
        ...

    def delete(self) -> None:
        """Removes the file."""
        ...

    def remove_temporary(self, below: bool) -> list[FileInfo]:
        """Removes the temporary files of killed writers in the folder, or also below it, and returns them."""
        ...

    def atomic_writer(self) -> AbstractContextManager[BinaryIO]:
        """Opens a stream whose file appears when the block ends without an exception."""
        ...

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replaces the content by what `change` makes of it, without losing the update of another writer."""
        ...

    def open_file(self) -> BinaryIO:
        """Opens the file for reading."""
        ...

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills a non-empty view of bytes from `offset` on."""
        ...

    def read_buffer(self) -> memoryview:
        """Reads the file into new memory."""
        ...
