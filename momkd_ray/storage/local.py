"""Files on a disk: written under a temporary name and renamed, read by descriptors that stay open."""

from __future__ import annotations

import errno
import io
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import numpy as np

from momkd_ray.errors import InputError, RunError
from momkd_ray.storage.backend import FileInfo, Kind

OPEN_FILES = 64  # a process; far below the usual limit of 1,024
_WRITE_BUFFER = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalBackend:
    """A path on this machine or on a file system mounted there."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def kind(self) -> Kind | None:
        """What is there."""
        if os.path.isfile(self.path):
            return "file"
        return "folder" if os.path.isdir(self.path) else None

    def stat(self) -> FileInfo | None:
        """The file; None where there is none."""
        try:
            return _info(os.path.basename(self.path), os.stat(self.path)) if self.kind() == "file" else None
        except FileNotFoundError:
            return None

    def list_files(self) -> list[FileInfo]:
        """The files inside the folder, in any order; links count as what they lead to."""
        found = []
        for entry in self._entries():
            with suppress(FileNotFoundError):  # removed since it was listed
                if entry.is_file():
                    found.append(_info(entry.name, entry.stat()))
        return found

    def list_names(self) -> set[str]:
        """The names inside the folder."""
        return {entry.name for entry in self._entries()}

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise InputError(f"cannot list {self.path}: {error.strerror}") from error

    def delete(self) -> None:
        """Remove the file."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        except OSError as error:
            raise InputError(f"cannot remove {self.path}: {error.strerror}") from error

    @contextmanager
    def atomic_writer(self) -> Iterator[BinaryIO]:
        """A stream into a temporary file beside the real one, renamed when the block ends well."""
        folder, name = os.path.split(self.path)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            os.makedirs(folder, exist_ok=True)
            stream = io.BufferedWriter(_Output(temporary, self.path), _WRITE_BUFFER)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        try:
            yield stream
            stream.close()
            self._take_name(temporary)
        except BaseException:
            with suppress(Exception):  # a full disk refuses the rest of the buffer once more
                stream.close()
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _take_name(self, temporary: str) -> None:
        try:
            os.replace(temporary, self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def open_file(self) -> BinaryIO:
        """The file, open for reading."""
        return open(self.path, "rb")

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a view from a descriptor that stays open."""
        file = _open_files.get(self.path)
        done = 0
        while done < len(view):
            count = os.preadv(file.descriptor, [view[done:]], offset + done)
            if not count:
                raise OSError(f"{self.path} ends before byte {offset + len(view)}")
            done += count

    def read_buffer(self) -> memoryview:
        """The whole file."""
        with open(self.path, "rb", buffering=0) as file:
            view = np.empty(os.fstat(file.fileno()).st_size, np.uint8).data
            done = 0
            while done < len(view) and (count := file.readinto(view[done:])):
                done += count
        return view[:done]


def _info(name: str, found: os.stat_result) -> FileInfo:
    return FileInfo(name, found.st_size, f"{found.st_size}-{found.st_mtime_ns}")


class _Output(io.FileIO):
    """A new file whose faults in writing are the disk's, and told as such."""

    def __init__(self, path: str, final_path: str) -> None:
        super().__init__(path, "xb")
        self._final_path = final_path

    def write(self, content: object) -> int:
        try:
            return super().write(content)  # type: ignore[arg-type]  # any buffer
        except OSError as error:
            raise _cannot_write(self._final_path, error) from error


def _cannot_write(path: str, error: OSError) -> InputError | RunError:
    sentence = f"cannot write {path}: {error.strerror or error}"
    if error.errno in _FULL:
        return RunError(f"{sentence}; free some space there, then run the same command again")
    if error.errno == errno.EIO:
        return RunError(f"{sentence}; the disk is failing or was taken away")
    return InputError(sentence)


class _OpenFile:
    """A descriptor that is closed when its last user lets go of it, so never under a thread that reads."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = _identity(os.fstat(self.descriptor))

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be opened
            os.close(self.descriptor)


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class _OpenFiles:
    """The files read last, still open; one that has been replaced since is opened anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()

    def get(self, path: str) -> _OpenFile:
        identity = _identity(os.stat(path))
        with self._lock:
            file = self._files.get(path)
            if file is not None and file.identity == identity:
                self._files.move_to_end(path)
                return file
        file = _OpenFile(path)
        with self._lock:
            self._files[path] = file
            self._files.move_to_end(path)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        return file


_open_files = _OpenFiles()


def _forget() -> None:
    """After a fork another thread's lock would stay locked for ever."""
    global _open_files
    _open_files = _OpenFiles()


os.register_at_fork(after_in_child=_forget)
