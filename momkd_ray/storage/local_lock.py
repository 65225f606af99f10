"""A lock file that one process at a time holds, on local disks and on NFS, and that a killed holder does not keep."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from momkd_ray.errors import RunError
from momkd_ray.storage.local_retry import with_local_retries
from momkd_ray.storage.process_identity import ProcessIdentity, host_name, this_process

POLL_S = 0.05
ABANDONED_AFTER_S = 60.0  # a holder needs milliseconds
WAIT_S = 600.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def exclusive_file(path: str) -> Iterator[None]:
    """Holds a lock file for the length of the block.

    A lock of a process of this machine that has ended is removed at once, and one that does not change for a minute, by
    this process's own clock, belongs to a killed process of another machine and is removed too.

    Raises:
        RunError: others held it for ten minutes.
    """
    process = this_process()
    owner = f"{host_name()} {process.pid} {process.started or '-'} {uuid.uuid4().hex} {process.machine}"
    started = seen_since = time.monotonic()
    seen = ""
    while not _create(path, owner):
        holder = _read(path)
        now = time.monotonic()
        if holder != seen:
            seen, seen_since = holder, now
        if _has_ended(holder) or now - seen_since > ABANDONED_AFTER_S:
            _remove(path, holder)
        if now - started > WAIT_S:
            host, pid = [*holder.split(" "), "", ""][:2]
            raise RunError(
                f"{path} is held by process {pid} on {host}; if it has ended, remove that file and run again"
            )
        time.sleep(POLL_S)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _has_ended(holder: str) -> bool:
    """Returns whether a lock's owner is a process of this machine that has ended."""
    _, pid, started, _, machine = [*holder.split(" ", 4), "", "", "", "", ""][:5]
    return pid.isdigit() and ProcessIdentity(machine, int(pid), started.strip("-")).has_ended()


def _create(path: str, owner: str) -> bool:
    """Creates the lock file with its content at once, by linking: a reader never sees it empty."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(temporary, "x") as file:
            file.write(owner)
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _create_exclusively(path, owner)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _create_exclusively(path: str, owner: str) -> bool:
    """Creates the lock file where there are no links; a reader may see it empty for a moment."""
    try:
        with open(path, "x") as file:
            file.write(owner)
        return True
    except FileExistsError:
        return False


def _read(path: str) -> str:
    def read() -> str:
        with open(path) as file:
            return file.read()

    try:
        return with_local_retries("read", path, read)
    except FileNotFoundError:
        return ""


def _remove(path: str, holder: str) -> None:
    """Removes an abandoned lock, and never that of a holder that has come since: renaming takes it for one alone."""
    taken = f"{path}.{uuid.uuid4().hex[:8]}"
    try:
        os.rename(path, taken)
    except FileNotFoundError:
        return
    if _read(taken) != holder:
        with suppress(FileExistsError):
            os.link(taken, path)  # give it back
    os.unlink(taken)
