"""A feature file as bytes, local or remote; trouble on the way to it is not a fault of the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pyarrow import fs

from momkd_ray import storage
from momkd_ray.errors import RunError
from momkd_ray.faults import FileFaultError

_BUFFER_BYTES = 64 * 2**10  # the header of an HDF5 file lies in a few of these, each one request


@dataclass(frozen=True)
class Source:
    """A feature file that is there.

    Attributes:
        path: as the user gave it.
        inner: the path inside its file system.
        size: in bytes.
        local: whether `inner` can be opened by name.
    """

    path: str
    inner: str
    size: int
    local: bool
    _system: fs.FileSystem

    @contextmanager
    def opened(self, *, whole: bool) -> Iterator[BinaryIO]:
        """The bytes of the file, seekable; `whole` says that all will be read, which from S3 is one request.

        Raises:
            FileFaultError: the file is gone, or may not be read.
            RunError: the network failed; also in place of what a library makes of that.
        """
        with _to_the_file(self.path, self.local):
            if self.local:
                stream: Any = open(self.inner, "rb", buffering=0)  # noqa: SIM115
            elif whole:
                with self._system.open_input_stream(self.inner) as whole_stream:
                    stream = io.BytesIO(whole_stream.read())
            else:
                stream = _Remote(self.path, self._system.open_input_file(self.inner))
        if not isinstance(stream, _Remote):
            with stream:
                yield stream
            return
        try:
            with io.BufferedReader(stream, _BUFFER_BYTES) as buffered:
                yield cast(BinaryIO, buffered)
        except Exception:
            if stream.trouble is not None:
                raise stream.trouble from None
            raise


def located(path: str) -> Source:
    """The feature file at a local path or `s3://` URI.

    Raises:
        FileFaultError: there is no such file, or it is a folder.
        RunError: its store cannot be reached.
    """
    system, inner = storage.filesystem(path)
    local = isinstance(system, fs.LocalFileSystem)
    with _to_the_file(path, local):
        info = system.get_file_info(inner)
    if info.type == fs.FileType.NotFound:
        raise _missing(path)
    if info.type != fs.FileType.File:
        raise FileFaultError("unreadable", f"{path} is a folder, not a feature file; name the file of the slide")
    return Source(path, inner, info.size, local, system)


class _Remote(io.RawIOBase):
    """A remote file read piece by piece, which remembers what went wrong: libraries take it for damage."""

    def __init__(self, path: str, file: Any) -> None:
        self._path, self._file = path, file
        self.trouble: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any, /) -> int:
        try:
            with _to_the_file(self._path, local=False):
                piece = self._file.read(len(buffer))
        except Exception as error:
            self.trouble = error
            raise
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _to_the_file(path: str, local: bool) -> Iterator[None]:
    """Say in a sentence why the bytes of a file cannot be had."""
    try:
        yield
    except FileNotFoundError as error:
        raise _missing(path) from error
    except OSError as error:
        cause = " ".join((error.strerror or str(error)).split())
        if local:
            raise FileFaultError("unreadable", f"{path} cannot be opened ({cause}); let this user read it") from error
        raise RunError(f"{path} cannot be reached ({cause}); mend the connection and run again") from error


def _missing(path: str) -> FileFaultError:
    return FileFaultError("missing", f"there is no feature file {path}; extract it or leave the slide out")
