"""Reads a range of an S3 object in concurrent pieces of one version of the object."""

from __future__ import annotations

import time
from concurrent.futures import Future, as_completed, wait
from functools import partial
from threading import Event
from typing import Any, Protocol

import numpy as np
from botocore.exceptions import ClientError

from momkd_ray.errors import RunError
from momkd_ray.storage.s3_client import client, pool
from momkd_ray.storage.s3_retry import IncompleteResponseError, replaced_error, status_of, with_retries

PIECE_BYTES = 4 * 2**20  # at 50 MB/s a connection its first byte takes a sixth of the time
SLOWEST_BYTES_S = 2**18
"""A first attempt that is slower than this for `SLOW_S` is asked again."""
SLOW_S = 10.0
_SLICE_BYTES = 2**17  # between two of them a slow answer is noticed


class S3Object(Protocol):
    """An object of a bucket."""

    location: str

    def object(self) -> dict[str, str]:
        """Returns its `Bucket` and `Key`."""
        ...


class _EndOfObjectError(OSError):
    """The object ends before the requested range."""


class RangeRead:
    """Reads one range of one object.

    The headers of the first piece's answer give the object's size and ETag. The other pieces start then, and ask for
    that ETag, so all pieces come from one version of the object.

    Args:
        source: the object.
        offset: first byte of the range.
        view: memory to fill; without one, memory is allocated for the rest of the object.
        etag: version to read; without one, the present version.
        max_bytes: limit of the memory that is allocated.

    Attributes:
        etag: version of the object, set by `read`.
        size: bytes of the entire object, set by `read`.
    """

    def __init__(
        self,
        source: S3Object,
        offset: int = 0,
        view: memoryview | None = None,
        *,
        etag: str | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.etag, self.size = etag, 0
        self._source, self._offset, self._view, self._max_bytes = source, offset, view, max_bytes
        self._other_pieces: list[Future[None]] = []
        self._cancelled = Event()
        self._attempted: set[int] = set()  # offsets of the pieces that were asked for

    def read(self) -> memoryview:
        """Reads the range and returns it.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: the object ends before the range does.
            RunError: the object was replaced during the read, or S3 did not recover.
        """
        try:
            view: memoryview = self._with_retries(self._first_piece)
            for piece in as_completed(self._other_pieces):
                piece.result()
            return view
        except BaseException as error:
            self._cancelled.set()
            running = [piece for piece in self._other_pieces if not piece.cancel()]
            if isinstance(error, Exception):  # Ctrl-C does not wait
                wait(running)  # nothing may be written to the caller's buffer after the exception
            raise

    def _with_retries(self, request: Any) -> Any:
        return with_retries("read", self._source.location, request, cancelled=self._cancelled)

    def _first_piece(self) -> memoryview:
        wanted = len(self._view) if self._view is not None else self._max_bytes
        length = PIECE_BYTES if wanted is None else min(wanted, PIECE_BYTES)
        first = self._offset not in self._attempted
        try:
            answer = self._request(self._offset, length)
        except _EndOfObjectError:
            if self._view is None and not self._offset:
                return memoryview(bytearray())  # an empty object has no valid range
            raise
        view = self._start_other_pieces(answer) if not self.size else self._view
        assert view is not None
        self._fill(answer, view[:PIECE_BYTES], first)
        return view

    def _start_other_pieces(self, answer: dict[str, Any]) -> memoryview:
        self.etag, self.size = answer["ETag"], int(answer["ContentRange"].rpartition("/")[2])
        if self._view is None:
            length = self.size - self._offset
            length = length if self._max_bytes is None else min(length, self._max_bytes)
            self._view = np.empty(length, np.uint8).data
        end = self._offset + len(self._view)
        if end > self.size:
            answer["Body"].close()
            raise self._end_of_object(end)
        self._other_pieces = [
            pool().submit(self._with_retries, partial(self._other_piece, start))
            for start in range(PIECE_BYTES, len(self._view), PIECE_BYTES)
        ]
        return self._view

    def _end_of_object(self, end: int) -> _EndOfObjectError:
        return _EndOfObjectError(f"{self._source.location} ends before byte {end}")

    def _other_piece(self, start: int) -> None:
        assert self._view is not None
        view = self._view[start : start + PIECE_BYTES]
        first = self._offset + start not in self._attempted
        self._fill(self._request(self._offset + start, len(view)), view, first)

    def _request(self, offset: int, length: int) -> dict[str, Any]:
        condition = {} if self.etag is None else {"IfMatch": self.etag}
        byte_range = f"bytes={offset}-{offset + length - 1}"
        hasty = offset not in self._attempted
        self._attempted.add(offset)
        try:
            answer: dict[str, Any] = client(hasty=hasty).get_object(
                **self._source.object(), Range=byte_range, **condition
            )
        except ClientError as error:
            if status_of(error) == 416:
                raise self._end_of_object(offset + length) from error
            raise
        if "ContentRange" not in answer:
            answer["Body"].close()
            raise RunError(f"cannot read {self._source.location}: this S3 endpoint does not support range requests")
        if self.etag not in (None, answer["ETag"]):
            answer["Body"].close()
            raise replaced_error(self._source.location)
        return answer

    def _fill(self, answer: dict[str, Any], view: memoryview, hasty: bool) -> None:
        body, done, began = answer["Body"], 0, time.monotonic()
        try:
            while done < len(view) and not self._cancelled.is_set():
                count = body.readinto(view[done : done + _SLICE_BYTES])
                if not count:
                    raise IncompleteResponseError(f"the answer ended after {done} of {len(view)} bytes")
                done += count
                seconds = time.monotonic() - began
                if hasty and seconds > SLOW_S and done < min(len(view), SLOWEST_BYTES_S * seconds):
                    raise IncompleteResponseError(f"{done} of {len(view)} bytes came in {seconds:.0f} s")
        finally:
            if done < len(view):  # a connection cannot be reused in the middle of an answer
                body.close()
