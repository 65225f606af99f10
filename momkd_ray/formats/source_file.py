"""A feature file as bytes, local or remote; trouble on the way to it is not a fault of the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from momkd_ray import storage
from momkd_ray.input_faults import FileFaultError


@dataclass(frozen=True)
class Source:
    """A feature file that is there.

    Attributes:
        path: as the user gave it.
        size: in bytes.
        local: the path under which it can be opened by name; None for a remote file.
    """

    path: str
    size: int
    local: str | None

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The bytes of the file, seekable; a remote file is in memory, for all of it will be read.

        Raises:
            FileFaultError: the file is gone, or may not be read.
            RunError: its store cannot be reached.
        """
        try:
            stream = cast(
                BinaryIO,
                open(self.local, "rb", buffering=0)  # noqa: SIM115
                if self.local
                else _InMemory(storage.read_buffer(self.path)),
            )
        except FileNotFoundError as error:
            raise _missing(self.path) from error
        except OSError as error:
            cause = " ".join((error.strerror or str(error)).split())
            raise FileFaultError(
                "unreadable", f"{self.path} cannot be opened ({cause}); let this user read it"
            ) from error
        with stream:
            yield stream


def located(path: str) -> Source:
    """The feature file at a local path or `s3://` URI.

    Raises:
        FileFaultError: there is no such file, or it is a folder.
        RunError: its store cannot be reached.
    """
    found = storage.stat(path)
    if found is not None and not found.size:
        raise FileFaultError("empty", f"{path} is empty (0 bytes); copy or extract it again")
    if found is not None:
        return Source(path, found.size, storage.local_path(path))
    if storage.kind(path) == "folder":
        raise FileFaultError("unreadable", f"{path} is a folder, not a feature file; name the file of the slide")
    raise _missing(path)


class _InMemory(io.RawIOBase):
    """A file over bytes in memory, without the copy that `BytesIO` makes of them."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._at = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._content)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        piece = self._content[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _missing(path: str) -> FileFaultError:
    return FileFaultError("missing", f"there is no feature file {path}; extract it or leave the slide out")
