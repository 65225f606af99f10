"""Access to a feature file's bytes, local or remote; a network failure is not a fault of the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from momkd_ray import storage
from momkd_ray.input_faults import FileFaultError


@dataclass(frozen=True)
class SourceFile:
    """An existing feature file.

    Attributes:
        path: as given by the user.
        size: in bytes.
        local: local path, by which it can be opened; None for a remote file.
    """

    path: str
    size: int
    local: str | None

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Opens the file as a seekable stream; a remote file is read into memory, as all of it is needed.

        Raises:
            FileFaultError: the file does not exist any more, or may not be read.
            RunError: its storage cannot be reached.
        """
        try:
            stream = cast(
                BinaryIO,
                open(self.local, "rb", buffering=0)  # noqa: SIM115
                if self.local
                else _InMemory(storage.read_buffer(self.path)),
            )
        except FileNotFoundError as error:
            raise missing_file(self.path) from error
        except OSError as error:
            cause = " ".join((error.strerror or str(error)).split())
            raise FileFaultError(
                "unreadable", f"{self.path} cannot be opened ({cause}); let this user read it"
            ) from error
        with stream:
            yield stream


def find_file(path: str) -> SourceFile:
    """Looks up the feature file at a local path or `s3://` URI.

    Raises:
        FileFaultError: there is no such file, it is empty, or it is a folder.
        RunError: its storage cannot be reached.
    """
    info = storage.stat(path)
    if info is not None and not info.size:
        raise FileFaultError("empty", f"{path} is empty (0 bytes); copy or extract it again")
    if info is not None:
        return SourceFile(path, info.size, storage.local_path(path))
    if storage.kind(path) == "folder":
        raise FileFaultError("unreadable", f"{path} is a folder, not a feature file; name the file of the slide")
    raise missing_file(path)


def missing_file(path: str) -> FileFaultError:
    """Builds the fault of a slide whose feature file does not exist."""
    return FileFaultError("missing", f"there is no feature file {path}; extract it or leave the slide out")


class _InMemory(io.RawIOBase):
    """A stream over bytes in memory, without the copy that `BytesIO` makes."""

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
