"""Caches bags on a node's own disk, by the SHA-256 of their content.

All processes of a node share a folder: a bag appears under its hash by a rename, the bag that was used least recently
is removed first, and any file may be deleted at any time. Nothing that goes wrong with the folder ends a run: the
cache is then off in this process, with one line that says why.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ALIGNMENT = 64
KEPT_FREE = 0.05
"""Share of the disk that the cache leaves free for others."""
EVICTED_TO = 0.9
"""Share of the limit that remains after bags have been removed, so that this is not done for every bag."""
RESCAN_SHARE = 0.02
"""Share of the limit that a process writes before it looks again at what all processes have written."""
ABANDONED_S = 3600.0

Bytes = NDArray[np.uint8]

_notes: list[str] = []


def take_notes() -> list[str]:
    """Returns what the user is to know of the caches of this process, once."""
    notes = _notes[:]
    del _notes[: len(notes)]
    return notes


def add_note(sentence: str) -> None:
    """Adds a line for the user, which the next epoch's metrics carry."""
    _notes.append(sentence)


def default_folder() -> str:
    """Returns the folder of the cache where the configuration names none: on a disk that survives a restart."""
    base = next((path for path in ("/var/tmp", tempfile.gettempdir()) if os.access(path, os.W_OK)), ".")
    return os.path.join(base, f"momkd-ray-{os.getuid()}", "bags")


class DiskCache:
    """A folder of bags. Thread-safe and picklable.

    Args:
        folder: on a disk of the node; made when first needed.
        gb: most that its bags take; None is half of what the disk has free, bags that are already cached included.

    Attributes:
        off: why the cache is not used any more in this process; '' while it is.
    """

    def __init__(self, folder: str, gb: float | None) -> None:
        self.folder, self.gb = folder, gb
        self.off = ""
        self._lock = threading.Lock()
        self._limit, self._used, self._since_scan = -1, 0, 0

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "gb": self.gb}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def room(self) -> int:
        """Returns the bytes that the cache may take on this node; 0 if its folder cannot be used."""
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                return 0
            return self._measure()[0]
        except OSError:
            return 0

    def holds(self, key: str) -> bool:
        """Tells whether there is a bag of this key."""
        return not self.off and os.path.exists(self._path(key))

    def get(self, key: str, sizes: Sequence[int]) -> list[Bytes] | None:
        """Reads a bag; None if it is not there.

        Args:
            key: SHA-256 of its content.
            sizes: bytes of its buffers.
        """
        if self.off:
            return None
        starts, size = layout(sizes)
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size != size:
                    return None
                # memory of Arrow's pool is already mapped, so it is several times faster to fill than fresh pages
                data = np.frombuffer(pa.allocate_buffer(size), np.uint8)
                done = 0
                while done < size:
                    count = os.preadv(file.fileno(), [data.data[done:]], done)
                    if not count:
                        return None
                    done += count
                with suppress(OSError):  # of another user
                    os.utime(file.fileno())
        except OSError:
            return None
        return [data[start : start + length] for start, length in zip(starts, sizes, strict=True)]

    def get_or_fill(self, key: str, sizes: Sequence[int], read: Callable[[], Sequence[Any]]) -> tuple[list[Any], bool]:
        """Reads a bag from the cache, or by `read` and puts it into the cache.

        Of several processes and threads that want the same bag, one reads it and the others wait for it.

        Args:
            key: SHA-256 of its content.
            sizes: bytes of its buffers.
            read: returns the verified buffers.

        Returns:
            The buffers, and whether they were cached.
        """
        cached = self.get(key, sizes)
        if cached is not None:
            return list(cached), True
        if self.off or not self._make_room(layout(sizes)[1]):
            return list(read()), False
        with self._partial(key) as partial:
            cached = self.get(key, sizes)  # another may have read it meanwhile
            if cached is not None:
                return list(cached), True
            buffers = list(read())
            if partial is not None:
                self._write(partial, key, buffers)
        return buffers, False

    def put(self, key: str, buffers: Sequence[Any]) -> None:
        """Puts a verified bag into the cache, unless it is there."""
        if not self.holds(key):
            self.get_or_fill(key, [len(buffer) for buffer in buffers], lambda: buffers)

    def _path(self, key: str) -> str:
        return os.path.join(self.folder, f"{key}.bag")

    @contextmanager
    def _partial(self, key: str) -> Iterator[int | None]:
        """Opens the file that is to become the bag, locked; None if that cannot be done."""
        path, descriptor = f"{self._path(key)}.partial", None
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with suppress(OSError):  # a file system without locks: two may then read the same bag
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            self._turn_off(error)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _write(self, descriptor: int, key: str, buffers: Sequence[Any]) -> None:
        """Writes the buffers and gives the file its name; the bytes are on the disk before the name is."""
        starts, size = layout([len(buffer) for buffer in buffers])
        path = self._path(key)
        try:
            os.ftruncate(descriptor, size)
            for start, buffer in zip(starts, buffers, strict=True):
                view, done = memoryview(buffer).cast("B"), 0
                while done < len(view):
                    done += os.pwrite(descriptor, view[done : done + 2**24], start + done)
            os.fdatasync(descriptor)
            # the name may belong to another process's file by now, if the folder was emptied meanwhile
            if os.path.samestat(os.fstat(descriptor), os.stat(f"{path}.partial")):
                os.replace(f"{path}.partial", path)
        except FileNotFoundError:
            return  # the folder was emptied: the next bag is cached again
        except OSError as error:
            with suppress(OSError):
                os.unlink(f"{path}.partial")
            self._turn_off(error)
            return
        with self._lock:
            self._used += size
            self._since_scan += size

    def _turn_off(self, error: OSError) -> None:
        with self._lock:
            if self.off:
                return
            self.off = f"{self.folder}: {error.strerror or error}"
        add_note(f"the bags are no longer cached on disk ({self.off}); they are read from the bag store")

    def _make_room(self, size: int) -> bool:
        """Removes the bags used least recently if a bag of this size would exceed the limit; False if it never fits."""
        with self._lock:
            fresh = 0 <= self._since_scan <= RESCAN_SHARE * self._limit
            if fresh and self._used + size <= self._limit:
                return True
            try:
                os.makedirs(self.folder, mode=0o700, exist_ok=True)
                self._limit, self._used, files = self._measure()
                self._since_scan = 0
                if size > self._limit:
                    return False
                if self._used + size > self._limit:
                    self._evict(files, size)
            except OSError as error:
                reason = error
            else:
                return True
        self._turn_off(reason)
        return False

    def _measure(self) -> tuple[int, int, list[tuple[float, int, str]]]:
        """Returns the limit, the bytes in use, and time of use, size and path of every file; removes abandoned ones."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    if entry.name.endswith(".partial") and time.time() - status.st_mtime > ABANDONED_S:
                        os.unlink(entry.path)
                    elif entry.name.endswith(".bag"):
                        files.append((status.st_mtime, status.st_size, entry.path))
        used = sum(size for _, size, _ in files)
        disk = shutil.disk_usage(self.folder)
        free = max(0, disk.free - int(KEPT_FREE * disk.total))
        limit = (disk.free + used) // 2 if self.gb is None else int(self.gb * 1e9)
        return min(limit, used + free), used, files

    def _evict(self, files: list[tuple[float, int, str]], size: int) -> None:
        target = min(EVICTED_TO * self._limit, self._limit - size)
        for _, length, path in sorted(files):
            if self._used <= target:
                return
            with suppress(FileNotFoundError):  # another process evicts, too
                os.unlink(path)
            self._used -= length


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Returns where the buffers of a bag begin in its file, each aligned, and the size of the file."""
    starts, end = [], 0
    for size in sizes:
        starts.append(-(-end // ALIGNMENT) * ALIGNMENT)
        end = starts[-1] + size
    return starts, end


def on_network(path: str) -> bool:
    """Tells whether a path lies on a file system of the network, by the machine's table of mounts."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    best, kind = "", ""
    for line in mounts:
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, name
    return kind.partition(".")[0] in {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "lustre",
        "ceph",
        "glusterfs",
        "beegfs",
        "gpfs",
        "fuse",
    }
