"""Removes from a bag store what nothing uses: parts that its manifest does not list, and files of killed writers.

Whoever writes to a store or trains on it holds a part of the store's lease, so that nothing is removed under it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from rich import filesize

from momkd_ray import storage
from momkd_ray.bags.store import MANIFEST, BagStore
from momkd_ray.errors import InputError, RunError
from momkd_ray.storage import FileInfo
from momkd_ray.storage.lease import is_held, lease

LEASE = ".lease.json"
_WAIT_S = 60.0  # cleaning takes seconds
_PARQUET = ".parquet"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removed:
    """What was removed from a store.

    Attributes:
        parts: parts that the manifest does not list.
        temporary: files of killed writers.
    """

    parts: tuple[FileInfo, ...] = ()
    temporary: tuple[FileInfo, ...] = ()

    @property
    def count(self) -> int:
        """Number of files."""
        return len(self.parts) + len(self.temporary)

    @property
    def bytes(self) -> int:
        """Their size."""
        return sum(file.size for file in (*self.parts, *self.temporary))

    def sentence(self, uri: str) -> str:
        """Tells number and size; '' if nothing was removed."""
        told = []
        if self.parts:
            told.append(f"{_count(self.parts, 'part')} of no use any more")
        if self.temporary:
            told.append(f"{_count(self.temporary, 'file')} that killed commands had not finished")
        return f"Removed from {uri}: {' and '.join(told)}" if told else ""


@contextmanager
def using(uri: str, on_info: Callable[[str], None]) -> Iterator[None]:
    """Protects a store from cleaning for the length of the block; first removes what killed writers have left.

    Args:
        uri: the store's folder.
        on_info: called with a sentence if something was removed.
    """
    with ExitStack() as stack:
        try:
            _remove_temporary(uri, on_info)
            stack.enter_context(_lease(uri, part=uuid.uuid4().hex, wait_s=_WAIT_S))
        except InputError as error:  # a store that this user cannot write to can still be read
            _log.info("the store %s is used without a lease: %s", uri, error)
        yield


def clean(uri: str) -> Removed:
    """Removes the parts that a store's manifest does not list, and what killed writers have left.

    Raises:
        InputError: there is no complete store.
        RunError: another process writes to the store or trains on it.
    """
    cure = "wait until that command has ended, then clean again"
    with _lease(uri, part="", cure=cure):
        listed = {entry["part"] for entry in BagStore.open(uri).entries.values()}
        unused = [file for file in _parts(uri) if file.name not in listed]
        for file in unused:
            storage.delete(storage.join(uri, file.name))
        return Removed(tuple(unused), tuple(storage.remove_temporary(uri)))


def unused_sentence(uri: str) -> str:
    """Tells how many parts a store's manifest does not list, and how they are removed; '' if there are none."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        return ""
    listed = {entry["part"] for entry in BagStore.open(uri).entries.values()}
    unused = [file for file in _parts(uri) if file.name not in listed]
    if not unused or is_held(storage.join(uri, LEASE), but_this_process=True):
        return ""  # or another command is still writing them
    return f"{uri} has {_count(unused, 'part')} of no use any more: `momkd-ray ingest --clean` removes them"


def _remove_temporary(uri: str, on_info: Callable[[str], None]) -> None:
    """Removes what killed writers have left, if no other process uses the store."""
    if storage.kind(uri) != "folder" or is_held(storage.join(uri, LEASE)):
        return  # others use it: one of them, or the next command alone, removes it
    try:
        with _lease(uri, part=""):
            removed = Removed(temporary=tuple(storage.remove_temporary(uri)))
    except (InputError, RunError) as error:  # another process was faster, or this user may not write there
        _log.info("nothing was removed from %s: %s", uri, error)
        return
    if told := removed.sentence(uri):
        on_info(told)


def _lease(uri: str, part: str, *, wait_s: float = 0.0, cure: str = "") -> AbstractContextManager[object]:
    return lease(storage.join(uri, LEASE), uri, part, wait_s=wait_s, cure=cure)


def _parts(uri: str) -> list[FileInfo]:
    return [file for file in storage.list_files(uri) if file.name.startswith("part-") and file.name.endswith(_PARQUET)]


def _count(files: Sequence[FileInfo], name: str) -> str:
    """Returns `3 parts (1.2 GB)`."""
    size = filesize.decimal(sum(file.size for file in files))
    return f"{len(files)} {name}{'' if len(files) == 1 else 's'} ({size})"
