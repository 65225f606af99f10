"""Local files: written under a temporary name and renamed, read through descriptors that stay open."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np

from momkd_ray.errors import InputError, RunError
from momkd_ray.storage.backend import LEASE, FileInfo, Kind
from momkd_ray.storage.local_lock import exclusive_file
from momkd_ray.storage.local_retry import machine_errno, machine_failure, with_local_retries

MAX_OPEN_FILES = 64  # per process; the usual limit is 1,024
_WRITE_BUFFER = 2**20
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp|\..+\.lock\.[0-9a-f]{8}")  # also those of `local_lock`


class LocalBackend:
    """A path on this machine or on a file system mounted there."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def kind(self) -> Kind | None:
        """Tells whether it is a file or a folder."""
        status = self._status()
        if status is None:
            return None
        return "folder" if stat.S_ISDIR(status.st_mode) else "file" if stat.S_ISREG(status.st_mode) else None

    def stat(self) -> FileInfo | None:
        """Returns size and stamp of the file; None if there is none."""
        status = self._status()
        is_file = status is not None and stat.S_ISREG(status.st_mode)
        return _info(os.path.basename(self.path), status) if status is not None and is_file else None

    def _status(self) -> os.stat_result | None:
        """The status of what is there; None if nothing is. Unlike `os.path.isfile`, a failing disk is not absence."""
        try:
            return with_local_retries("look up", self.path, lambda: os.stat(self.path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise InputError(f"cannot look up {self.path}: {error.strerror}; give this user access to it") from error
        except (OSError, ValueError):  # no valid name of a file
            return None

    def list_files(self) -> list[FileInfo]:
        """Lists the files directly in the folder, in any order; a link counts as its target."""
        return with_local_retries("list", self.path, self._files)

    def _files(self) -> list[FileInfo]:
        files = []
        for entry in self._entries():
            with suppress(FileNotFoundError):  # removed since it was listed
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    files.append(_info(entry.name, status))
        return files

    def list_names(self) -> set[str]:
        """Lists the names of files and folders directly in the folder."""
        return {entry.name for entry in with_local_retries("list", self.path, self._entries)}

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
                with_local_retries("remove", self.path, lambda: os.unlink(self.path))
        except OSError as error:
            raise InputError(
                f"cannot remove {self.path}: {error.strerror}; give this user write access to its folder"
            ) from error

    def remove_temporary(self, below: bool) -> list[FileInfo]:
        """Removes the temporary files of killed writers in the folder, or also below it, and returns them."""
        left = []
        for folder in [self.path, *(at for at, _, _ in os.walk(self.path) if below and at != self.path)]:
            for file in LocalBackend(folder).list_files():
                if _TEMPORARY.fullmatch(file.name) and LEASE not in file.name:
                    LocalBackend(os.path.join(folder, file.name)).delete()
                    left.append(file)
        return left

    @contextmanager
    def atomic_writer(self) -> Iterator[BinaryIO]:
        """Opens a stream to a temporary file in the same folder, which is renamed when the block ends."""
        folder, name = os.path.split(self.path)
        temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.tmp")
        stream: io.BufferedWriter[Any] | None = None
        try:
            try:
                os.makedirs(folder, exist_ok=True)
                stream = io.BufferedWriter(_OutputFile(temporary, self.path), _WRITE_BUFFER)
            except OSError as error:
                raise _cannot_write(self.path, error) from error
            yield stream
            self._sync(stream)
            stream.close()
            self._rename(temporary)
        except BaseException:
            try:
                if stream is not None:
                    with suppress(Exception):  # a full disk refuses the rest of the buffer again
                        stream.close()
            finally:  # also if a second interrupt ends the closing
                with suppress(OSError):
                    os.unlink(temporary)
            raise

    def _sync(self, stream: io.BufferedWriter[Any]) -> None:
        """Waits until the content is on the disk: a rename may survive a power failure that the content does not."""
        stream.flush()
        try:
            os.fsync(stream.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _rename(self, temporary: str) -> None:
        folder = os.path.dirname(self.path)
        try:
            os.replace(temporary, self.path)
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        try:
            os.fsync(descriptor)  # of the name
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some file systems sync no folders
                raise _cannot_write(self.path, error) from error
        finally:
            os.close(descriptor)

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replaces the content under a lock file, which NFS too creates for one of several writers alone."""
        folder, name = os.path.split(self.path)
        try:
            with exclusive_file(os.path.join(folder, f".{name}.lock")):
                self._change_content(change)
        except OSError as error:  # of the lock file
            raise _cannot_write(self.path, error) from error

    def _change_content(self, change: Callable[[bytes | None], bytes]) -> None:
        try:
            content = bytes(self.read_buffer())
        except FileNotFoundError:
            content = None
        changed = change(content)
        with self.atomic_writer() as stream:
            stream.write(changed)

    def open_file(self) -> BinaryIO:
        """Opens the file for reading."""
        return io.BufferedReader(_InputFile(self))

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills a view through a descriptor that stays open."""
        with_local_retries("read", self.path, lambda: self._read_once(offset, view))

    def _read_once(self, offset: int, view: memoryview) -> None:
        try:
            self._fill(_open_files.get(self.path), offset, view)
        except OSError:
            _open_files.drop(self.path)  # a stale descriptor stays stale
            raise

    def _fill(self, file: _OpenFile, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(file.descriptor, [view[done:]], offset + done)
            if not count:
                raise OSError(f"{self.path} ends before byte {offset + len(view)}")
            done += count

    def read_buffer(self) -> memoryview:
        """Reads the file into new memory."""
        return with_local_retries("read", self.path, self._read_all)

    def _read_all(self) -> memoryview:
        with open(self.path, "rb", buffering=0) as file:
            view = np.empty(os.fstat(file.fileno()).st_size, np.uint8).data
            done = 0
            while done < len(view) and (count := file.readinto(view[done:])):
                done += count
        return view[:done]


def _info(name: str, status: os.stat_result) -> FileInfo:
    return FileInfo(name, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


class _InputFile(io.RawIOBase):
    """A file that is reopened and read again while the machine fails. It must not be replaced meanwhile."""

    def __init__(self, backend: LocalBackend) -> None:
        self._backend = backend
        self._open()
        self._position = 0

    def _open(self) -> None:
        path = self._backend.path
        self._file = with_local_retries("open", path, lambda: _OpenFile(path))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        size = self._file.identity[2]
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        if position < 0:
            raise ValueError(f"a file has no byte {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any, /) -> int:
        count = with_local_retries("read", self._backend.path, lambda: self._read_once(buffer))
        self._position += count
        return count

    def _read_once(self, buffer: Any) -> int:
        try:
            return os.preadv(self._file.descriptor, [buffer], self._position)
        except OSError:
            before = self._file.identity
            self._open()
            if self._file.identity != before:
                raise RunError(
                    f"{self._backend.path} was replaced while it was read; run the same command again"
                ) from None
            raise


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
    if error.errno == errno.EFBIG:
        return RunError(f"{sentence}; raise the limit of a file's size there, then run the same command again")
    if (number := machine_errno(error)) is not None:
        return machine_failure("write", path, number)
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

    def drop(self, path: str) -> None:
        """Closes the file of a path once no thread reads from it."""
        with self._lock:
            self._files.pop(path, None)

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
