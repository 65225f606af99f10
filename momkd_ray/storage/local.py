"""Local files: written under a temporary name and renamed, read through descriptors that stay open."""

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

MAX_OPEN_FILES = 64  # per process; the usual limit is 1,024
_WRITE_BUFFER = 2**20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LocalBackend:
    """A path on this machine or on a file system mounted there."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def kind(self) -> Kind | None:
        """Tells whether it is a file or a folder."""
        if os.path.isfile(self.path):
            return "file"
        return "folder" if os.path.isdir(self.path) else None

    def stat(self) -> FileInfo | None:
        """Returns size and stamp of the file; None if there is none."""
        try:
            return _info(os.path.basename(self.path), os.stat(self.path)) if self.kind() == "file" else None
        except FileNotFoundError:
            return None

    def list_files(self) -> list[FileInfo]:
        """Lists the files directly in the folder, in any order; a link counts as its target."""
        files = []
        for entry in self._entries():
            with suppress(FileNotFoundError):  # removed since it was listed
                if entry.is_file():
                    files.append(_info(entry.name, entry.stat()))
        return files

    def list_names(self) -> set[str]:
        """Lists the names of files and folders directly in the folder."""
        return {entry.name for entry in self._entries()}

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise InputError(f"cannot list {self.path}: {error.strerror}; give this user access to it") from error

    def delete(self) -> None:
        """Removes the file."""
        try:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
        except OSError as error:
            raise InputError(
                f"cannot remove {self.path}: {error.strerror}; give this user write access to its folder"
            ) from error

    @contextmanager
    def atomic_writer(self) -> Iterator[BinaryIO]:
        """Opens a stream to a temporary file in the same folder, which is renamed when the block ends."""
        folder, name = os.path.split(self.path)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            os.makedirs(folder, exist_ok=True)
            stream = io.BufferedWriter(_OutputFile(temporary, self.path), _WRITE_BUFFER)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        try:
            yield stream
            stream.close()
            self._rename(temporary)
        except BaseException:
            with suppress(Exception):  # a full disk refuses the rest of the buffer again
                stream.close()
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _rename(self, temporary: str) -> None:
        try:
            os.replace(temporary, self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def open_file(self) -> BinaryIO:
        """Opens the file for reading."""
        return open(self.path, "rb")

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills a view through a descriptor that stays open."""
        file = _open_files.get(self.path)
        done = 0
        while done < len(view):
            count = os.preadv(file.descriptor, [view[done:]], offset + done)
            if not count:
                raise OSError(f"{self.path} ends before byte {offset + len(view)}")
            done += count

    def read_buffer(self) -> memoryview:
        """Reads the file into new memory."""
        with open(self.path, "rb", buffering=0) as file:
            view = np.empty(os.fstat(file.fileno()).st_size, np.uint8).data
            done = 0
            while done < len(view) and (count := file.readinto(view[done:])):
                done += count
        return view[:done]


def _info(name: str, status: os.stat_result) -> FileInfo:
    return FileInfo(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


class _OutputFile(io.FileIO):
    """A new file whose write errors say which file could not be written, and why."""

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
    if error.errno in _NO_SPACE:
        return RunError(f"{sentence}; free some space there, then run the same command again")
    if error.errno == errno.EIO:
        return RunError(f"{sentence}; the disk has failed or was removed; check it, then run the same command again")
    return InputError(f"{sentence}; choose a location where this user can write")


class _OpenFile:
    """A file descriptor that is closed with its last reference, so never while a thread reads from it."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.identity = _identity(os.fstat(self.descriptor))

    def __del__(self) -> None:
        with suppress(AttributeError):  # opening failed
            os.close(self.descriptor)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class _OpenFiles:
    """Keeps the most recently read files open, and reopens one that has been replaced."""

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
            if len(self._files) > MAX_OPEN_FILES:
                self._files.popitem(last=False)
        return file


_open_files = _OpenFiles()


def _reset_after_fork() -> None:
    """In the child of a fork a lock that another thread held would stay locked forever."""
    global _open_files
    _open_files = _OpenFiles()


os.register_at_fork(after_in_child=_reset_after_fork)
