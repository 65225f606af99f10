"""An object of S3 as a file to read and seek in, with few requests."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from momkd_ray.storage.s3_download import Named, RangeRead

BLOCK_BYTES = 256 * 2**10
KEPT_BLOCKS = 64
MOST_AHEAD = 32  # blocks a request
DIRECT_BYTES = 2 * 2**20  # so long a read is made as it is, past the blocks


class ObjectFile(io.RawIOBase):
    """The object as it is when opened: what replaces it later is an error.

    Small reads scattered over the object, as HDF5 makes them, are answered from blocks; a read that goes on where
    the last one ended makes the next request twice as long.
    """

    def __init__(self, place: Named) -> None:
        self._place = place
        self._lock = threading.RLock()
        first = RangeRead(place, at_most=BLOCK_BYTES)
        self._blocks = OrderedDict({0: first.read()})
        self._etag, self._size = first.etag, first.size
        self._position = 0
        self._next_block, self._ahead = 1, 1

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins, in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte, which may lie after the end."""
        with self._lock:
            origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
            if origin + offset < 0:
                raise ValueError(f"a file has no byte {origin + offset}")
            self._position = origin + offset
            return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the object reaches; returns the number of bytes."""
        if self.closed:
            raise ValueError(f"{self._place.location} is closed")
        with self._lock:
            view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
            if len(view) >= DIRECT_BYTES:
                RangeRead(self._place, self._position, view, etag=self._etag).read()
            else:
                self._from_blocks(view)
            self._position += len(view)
            return len(view)

    def _from_blocks(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            index, start = divmod(self._position + done, BLOCK_BYTES)
            left = len(view) - done
            part = self._block(index, needed=-(-(start + left) // BLOCK_BYTES))[start : start + left]
            view[done : done + len(part)] = part
            done += len(part)

    def _block(self, index: int, needed: int) -> memoryview:
        """A block, fetched with those after it that are needed, or will be if reading goes on as it does."""
        if index not in self._blocks:
            self._ahead = min(2 * self._ahead, MOST_AHEAD) if index == self._next_block else 1
            start = index * BLOCK_BYTES
            view = np.empty(min(max(needed, self._ahead) * BLOCK_BYTES, self._size - start), np.uint8).data
            RangeRead(self._place, start, view, etag=self._etag).read()
            self._next_block = index + -(-len(view) // BLOCK_BYTES)
            for at in range(index, self._next_block):
                self._blocks[at] = view[(at - index) * BLOCK_BYTES :][:BLOCK_BYTES]
            while len(self._blocks) > KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return self._blocks[index]
