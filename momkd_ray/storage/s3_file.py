"""An S3 object as a seekable file, with block cache and prefetch."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from momkd_ray.storage.s3_download import RangeRead, S3Object

BLOCK_BYTES = 256 * 2**10
MAX_CACHED_BLOCKS = 64
MAX_PREFETCH_BLOCKS = 32  # per request
DIRECT_BYTES = 2 * 2**20  # a read of this length or more bypasses the cache


class ObjectFile(io.RawIOBase):
    """One version of an object, the one at the time of opening; a read fails if the object has been replaced.

    Small scattered reads, as HDF5 makes them, are served from cached blocks. A read that continues where the last one
    ended doubles the length of the next request.
    """

    def __init__(self, source: S3Object) -> None:
        self._source = source
        self._lock = threading.RLock()
        first_block = RangeRead(source, max_bytes=BLOCK_BYTES)
        self._blocks = OrderedDict({0: first_block.read()})
        self._etag, self._size = first_block.etag, first_block.size
        self._position = 0
        self._next_block, self._prefetch = 1, 1

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position of the next read in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets the position, which may lie after the end, and returns it."""
        with self._lock:
            origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
            if origin + offset < 0:
                raise ValueError(f"a file has no byte {origin + offset}")
            self._position = origin + offset
            return self._position

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer up to the end of the object; returns the number of bytes."""
        if self.closed:
            raise ValueError(f"{self._source.location} is closed")
        with self._lock:
            view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
            if len(view) >= DIRECT_BYTES:
                RangeRead(self._source, self._position, view, etag=self._etag).read()
            else:
                self._read_cached(view)
            self._position += len(view)
            return len(view)

    def _read_cached(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            index, start = divmod(self._position + done, BLOCK_BYTES)
            left = len(view) - done
            part = self._block(index, needed=-(-(start + left) // BLOCK_BYTES))[start : start + left]
            view[done : done + len(part)] = part
            done += len(part)

    def _block(self, index: int, needed: int) -> memoryview:
        """Returns a block; fetches it together with the blocks that are needed next and those to prefetch."""
        if index not in self._blocks:
            self._prefetch = min(2 * self._prefetch, MAX_PREFETCH_BLOCKS) if index == self._next_block else 1
            start = index * BLOCK_BYTES
            view = np.empty(min(max(needed, self._prefetch) * BLOCK_BYTES, self._size - start), np.uint8).data
            RangeRead(self._source, start, view, etag=self._etag).read()
            self._next_block = index + -(-len(view) // BLOCK_BYTES)
            for i in range(index, self._next_block):
                self._blocks[i] = view[(i - index) * BLOCK_BYTES :][:BLOCK_BYTES]
            while len(self._blocks) > MAX_CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(index)
        return self._blocks[index]
