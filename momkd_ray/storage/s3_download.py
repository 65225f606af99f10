"""Reading a range of an object as pieces side by side, all of one and the same object."""

from __future__ import annotations

from concurrent.futures import Future, as_completed, wait
from functools import partial
from threading import Event
from typing import Any, Protocol

import numpy as np
from botocore.exceptions import ClientError

from momkd_ray.errors import RunError
from momkd_ray.storage.s3_client import client, pool
from momkd_ray.storage.s3_retry import BrokenAnswerError, replaced, status_of, with_retries

PIECE_BYTES = 8 * 2**20
_SLICE_BYTES = 2**20


class Named(Protocol):
    """An object of a bucket."""

    location: str

    def object(self) -> dict[str, str]:
        """Its `Bucket` and `Key`."""
        ...


class _TooShortError(OSError):
    """The object ends before the range does."""


class RangeRead:
    """One range of one object.

    The first piece's answer tells the object's size and ETag before its body is read; only then do the others start,
    for that ETag alone.

    Attributes:
        etag: of the object; known after `read`.
        size: of the whole object in bytes; known after `read`.
    """

    def __init__(
        self,
        place: Named,
        offset: int = 0,
        view: memoryview | None = None,
        *,
        etag: str | None = None,
        at_most: int | None = None,
    ) -> None:
        """`view` is what to fill; without one, memory is made for all from `offset` on, or `at_most` so many bytes."""
        self.etag, self.size = etag, 0
        self._place, self._offset, self._view, self._at_most = place, offset, view, at_most
        self._others: list[Future[None]] = []
        self._given_up = Event()

    def read(self) -> memoryview:
        """The bytes.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: the object ends before the range.
            RunError: the object was replaced meanwhile, or S3 did not recover.
        """
        try:
            filled: memoryview = self._patiently(self._first_piece)
            for other in as_completed(self._others):
                other.result()
            return filled
        except BaseException as error:
            self._given_up.set()
            running = [other for other in self._others if not other.cancel()]
            if isinstance(error, Exception):  # Ctrl-C does not wait
                wait(running)  # nothing may still be written into the caller's buffer when this is told
            raise

    def _patiently(self, request: Any) -> Any:
        return with_retries("read", self._place.location, request, given_up=self._given_up)

    def _first_piece(self) -> memoryview:
        asked = next((n for n in (self._wanted(), self._at_most) if n is not None), PIECE_BYTES)
        try:
            answer = self._answer(self._offset, min(asked, PIECE_BYTES))
        except _TooShortError:
            if self._view is None and not self._offset:
                return memoryview(bytearray())  # an empty object has no range, not even an empty one
            raise
        view = self._begin(answer) if not self.size else self._view
        assert view is not None
        self._fill(answer, view[:PIECE_BYTES])
        return view

    def _wanted(self) -> int | None:
        return None if self._view is None else len(self._view)

    def _begin(self, answer: dict[str, Any]) -> memoryview:
        self.etag, self.size = answer["ETag"], int(answer["ContentRange"].rpartition("/")[2])
        if self._view is None:
            length = self.size - self._offset
            length = length if self._at_most is None else min(length, self._at_most)
            self._view = np.empty(length, np.uint8).data
        end = self._offset + len(self._view)
        if end > self.size:
            answer["Body"].close()
            raise self._too_short(end)
        self._others = [
            pool().submit(self._patiently, partial(self._other_piece, start))
            for start in range(PIECE_BYTES, len(self._view), PIECE_BYTES)
        ]
        return self._view

    def _too_short(self, end: int) -> _TooShortError:
        return _TooShortError(f"{self._place.location} ends before byte {end}")

    def _other_piece(self, start: int) -> None:
        assert self._view is not None
        view = self._view[start : start + PIECE_BYTES]
        self._fill(self._answer(self._offset + start, len(view)), view)

    def _answer(self, offset: int, length: int) -> dict[str, Any]:
        condition = {} if self.etag is None else {"IfMatch": self.etag}
        asked = f"bytes={offset}-{offset + length - 1}"
        try:
            answer: dict[str, Any] = client().get_object(**self._place.object(), Range=asked, **condition)
        except ClientError as error:
            if status_of(error) == 416:
                raise self._too_short(offset + length) from error
            raise
        if "ContentRange" not in answer:
            answer["Body"].close()
            raise RunError(f"cannot read {self._place.location}: this S3 endpoint does not read in ranges")
        if self.etag not in (None, answer["ETag"]):
            answer["Body"].close()
            raise replaced(self._place.location)
        return answer

    def _fill(self, answer: dict[str, Any], view: memoryview) -> None:
        body, done = answer["Body"], 0
        try:
            while done < len(view) and not self._given_up.is_set():
                count = body.readinto(view[done : done + _SLICE_BYTES])
                if not count:
                    raise BrokenAnswerError(f"the answer ended after {done} of {len(view)} bytes")
                done += count
        finally:
            if done < len(view):  # a connection in the middle of an answer cannot be used again
                body.close()
