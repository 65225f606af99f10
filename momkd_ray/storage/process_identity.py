"""Names a process so that others on its machine can tell whether it has ended, even if its number was given away."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessIdentity:
    """A process of a machine.

    Attributes:
        machine: its machine since the last start, and the namespace of its process numbers: two containers differ.
        pid: its number.
        started: when it started, in clock ticks since the machine's start; '' where the system does not tell.
    """

    machine: str
    pid: int
    started: str

    def is_local(self) -> bool:
        """Returns whether its number has a meaning here."""
        return self.machine == _machine()

    def has_ended(self) -> bool:
        """Returns whether it is a process of this machine that does not run any more."""
        if not self.is_local():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False  # of another user, and alive
        state, started = _state_and_start(self.pid)
        return state in ("Z", "X") or bool(started and self.started and started != self.started)


def this_process() -> ProcessIdentity:
    """Returns the identity of the calling process."""
    return ProcessIdentity(_machine(), os.getpid(), _state_and_start(os.getpid())[1])


def host_name() -> str:
    """Returns this machine's name for messages."""
    return socket.gethostname()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return host_name()
    return f"{host_name()} {boot} {namespace}"


def _state_and_start(pid: int) -> tuple[str, str]:
    """Reads a process's state and start; ('', '') where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may contain spaces
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""
