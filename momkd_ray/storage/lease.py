"""A lease on a folder, or on parts of it, that one process at a time holds, local or on S3.

All holders are listed in one small file, which they replace by conditional writes (`storage.update`), and each counts
a heartbeat up in it. A holder that was killed is followed at once on its own machine, where its process number tells
that it has ended, and from another machine when its heartbeat has stood still for `ABANDONED_AFTER_S`, by that
machine's own clock.
"""

from __future__ import annotations

import _thread
import json
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from momkd_ray import storage
from momkd_ray.errors import InputError, RunError, StoppedError
from momkd_ray.storage.process_identity import ProcessIdentity, host_name, this_process

HEARTBEAT_S = 10.0
ABANDONED_AFTER_S = 60.0
POLL_S = 1.0
_held_here: set[str] = set()  # tokens of this process

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
        token: distinguishes it from every other holder.
        part: the part of the folder that it holds; '' for all of it.
        host: name of its machine.
        process: its identity on that machine.
        since: when it took the lease, in UTC.
        heartbeat: counted up while it lives.
    """

    token: str
    part: str
    host: str
    process: ProcessIdentity
    since: str
    heartbeat: int = 0

    def has_ended(self) -> bool:
        """Returns whether it holds nothing any more: its process has ended, or could not give the lease back."""
        given_up = self.process == this_process() and self.token not in _held_here
        return given_up or self.process.has_ended()

    def excludes(self, other: Holder) -> bool:
        """Returns whether the two may not hold their leases at the same time."""
        return self.token != other.token and (not self.part or not other.part or self.part == other.part)

    def __str__(self) -> str:
        part = f" ({self.part})" if self.part else ""
        return f"process {self.process.pid} on {self.host} since {self.since}{part}"


@contextmanager
def lease(
    location: str,
    folder: str,
    part: str = "",
    on_wait: Callable[[str], None] = lambda sentence: None,
    *,
    wait_s: float = 0.0,
    cure: str = "wait until that run has ended, or choose another run.dir",
) -> Iterator[Callable[[], bool]]:
    """Holds a folder, or a part of it, for the length of the block.

    Args:
        location: the file of the lease.
        folder: what is held, for messages.
        part: the part that is held, such as `fold 3`; '' for all of the folder and every part.
        on_wait: called with a sentence if a holder on another machine is watched for a sign of life.
        wait_s: seconds to wait for a living holder.
        cure: what the user can do about a living holder.

    Yields:
        A function that returns whether others hold parts of the folder now.

    Raises:
        RunError: another process holds it, or took it over while this one stood still.
    """
    mine = Holder(uuid.uuid4().hex, part, host_name(), this_process(), _now())
    _held_here.add(mine.token)
    try:
        _acquire(location, folder, mine, on_wait, wait_s=wait_s, cure=cure)
    except BaseException:
        _held_here.discard(mine.token)
        raise
    heart = _Heart(location, mine)
    heart.start()
    try:
        yield lambda: _others_hold(location, mine)
    except (KeyboardInterrupt, StoppedError) as error:
        if heart.successor is None:
            raise
        raise _lost(folder, heart.successor) from error
    finally:
        heart.stop()
        _held_here.discard(mine.token)
        _release(location, mine)
    if heart.successor is not None:
        raise _lost(folder, heart.successor)


def is_held(location: str, *, but_this_process: bool = False) -> bool:
    """Returns whether a process holds the lease, or one of another machine that may have ended.

    Args:
        location: the file of the lease.
        but_this_process: whether this process does not count.
    """
    holders = [holder for holder in _parse(_content(location), location) if not holder.has_ended()]
    return any(not but_this_process or holder.process != this_process() for holder in holders)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _lost(folder: str, successor: Holder) -> RunError:
    return RunError(f"{folder} was taken over by {successor} while this process stood still")


def _acquire(
    location: str, folder: str, mine: Holder, on_wait: Callable[[str], None], *, wait_s: float, cure: str
) -> None:
    """Adds a holder as soon as nobody alive excludes it; raises `RunError` if somebody does."""
    started = time.monotonic()
    first_seen: dict[str, tuple[int, float]] = {}  # token -> its heartbeat, and when it was seen first
    while True:
        now = time.monotonic()
        abandoned = {token for token, (_, seen) in first_seen.items() if now - seen >= ABANDONED_AFTER_S}
        blocking = _try(location, mine, abandoned)
        if not blocking:
            return
        told = bool(first_seen)
        for holder in blocking:
            heartbeat, _ = first_seen.setdefault(holder.token, (holder.heartbeat, now))
            lives = holder.process.is_local() or holder.heartbeat != heartbeat
            if lives and now - started >= wait_s:
                raise RunError(f"{folder} is in use by {holder}: {cure}")
        if not told and not wait_s:
            on_wait(
                f"{folder} was last in use by {blocking[0]}: waiting up to {ABANDONED_AFTER_S:.0f} s for a sign that "
                "it is alive"
            )
        time.sleep(POLL_S)


def _others_hold(location: str, mine: Holder) -> bool:
    holders = _parse(_content(location), location)
    return any(holder.token != mine.token and not holder.has_ended() for holder in holders)


def _try(location: str, mine: Holder, abandoned: set[str]) -> list[Holder]:
    """Adds a holder and removes those who have ended, unless others exclude it; returns those others."""

    def alive(content: bytes | None) -> list[Holder]:
        holders = _parse(content, location)
        return [holder for holder in holders if holder.token not in abandoned and not holder.has_ended()]

    def excluding(holders: list[Holder]) -> list[Holder]:
        return [holder for holder in holders if holder.excludes(mine)]

    blocking = excluding(alive(_content(location)))
    if blocking:
        return blocking

    def change(content: bytes | None) -> bytes:
        others = [holder for holder in alive(content) if holder.token != mine.token]
        blocking[:] = excluding(others)
        return _written(others if blocking else [*others, mine])

    storage.update(location, change)
    return blocking


def _content(location: str) -> bytes | None:
    try:
        return storage.read_bytes(location)
    except FileNotFoundError:
        return None


def _parse(content: bytes | None, location: str) -> list[Holder]:
    try:
        entries: list[dict[str, Any]] = json.loads(content)["holders"] if content else []
        return [Holder(**{**entry, "process": ProcessIdentity(**entry["process"])}) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{location} is damaged; remove it if no run works in that folder") from error


def _written(holders: list[Holder]) -> bytes:
    return (json.dumps({"holders": [asdict(holder) for holder in holders]}, indent=2) + "\n").encode()


def _release(location: str, mine: Holder) -> None:
    """Removes a holder. The file stays: removing it could remove a holder that has come since."""
    if not storage.exists(location):
        return
    try:
        storage.update(location, lambda old: _written([h for h in _parse(old, location) if h.token != mine.token]))
    except (InputError, RunError) as error:  # the process ends, which releases it too
        if sys.exc_info()[1] is None:
            _log.warning("the lease in %s could not be given back: %s", location, error)


class _Heart(threading.Thread):
    """Counts a holder's heartbeat up, and interrupts the main thread if another process has taken the lease over.

    Attributes:
        successor: who has taken it over.
    """

    def __init__(self, location: str, mine: Holder) -> None:
        super().__init__(name="lease", daemon=True)
        self.location, self.mine = location, mine
        self.successor: Holder | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                storage.update(self.location, self._beat)
            except Exception as error:  # the storage may be away for a while
                _log.warning("the lease in %s could not be renewed: %s", self.location, error)
                continue
            if self.successor is not None:
                _thread.interrupt_main()
                return

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=POLL_S)  # it may be waiting for a storage that is away

    def _beat(self, content: bytes | None) -> bytes:
        holders = _parse(content, self.location)
        others = [holder for holder in holders if holder.token != self.mine.token]
        self.successor = next((holder for holder in others if holder.excludes(self.mine)), None)
        if self.successor is not None or self._ended.is_set():
            return _written(others)
        self.mine = replace(self.mine, heartbeat=self.mine.heartbeat + 1)
        return _written([*others, self.mine])
