"""Validates the heaps of an HDF5 file before the HDF5 library reads them.

The names of a group and the text of attributes are stored in heaps, linked lists whose pointers may be damaged. The
library then loops forever or reads out of bounds. So the heaps that an object points to are located here by the file
format alone (HDF5 File Format Specification 3.0, III.D, III.E and IV.A) and traversed within their bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

Read = Callable[[int, int], bytes]  # (offset, length); fewer bytes at the end of the file

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ATTRIBUTE, _CONTINUATION, _NAMES, _ATTRIBUTE_INFO = 0x0C, 0x10, 0x11, 0x15  # kinds of messages in a header
_VARIABLE_LENGTH = 9  # a class of types
_NOWHERE = b"\xff" * 8
_TEXT_MARK = b"GCOL\x01\0\0\0"  # with its version, long enough not to occur by chance
_NAMES_MARK = b"HEAP"
_CACHED = 1  # the superblock holds the address of the heap of the root group's names
_LAST_FREE = 1
_OBJECT = struct.Struct("<HHIQ")  # index (0: free space), references, reserved, length
_MAX_BLOCKS = 10_000  # of a header; more is a cycle
_PIECE = 2**20


class Heaps:
    """The heaps of one file.

    Args:
        read: reads bytes of the file.
        size: of the file in bytes.
    """

    def __init__(self, read: Read, size: int) -> None:
        self._size = size
        self._start = next((at for at in _starts(size) if read(at, 8) == _SIGNATURE), size)
        self._read: Read = lambda offset, length: read(self._start + offset, length)
        head = self._read(0, 14).ljust(14, b"\0")
        # a file that is not HDF5, or has addresses of an unusual width, is left to the HDF5 library
        self._known = (head[13] if head[8] < 2 else head[9]) == 8

    def check_names(self) -> None:
        """Validates what the library reads to open the file and to list its names.

        Raises:
            ValueError: the file is truncated, or the heap of the names is damaged.
        """
        if not self._known:
            return
        head = self._read(0, 96)
        at_end, at_root = {0: (40, 64), 1: (44, 68)}.get(head[8], (28, 36))
        if len(head) < 96 or struct.unpack_from("<Q", head, at_end)[0] > self._size:
            raise ValueError("truncated file")
        self.check(struct.unpack_from("<Q", head, at_root)[0])
        if head[8] == 0 and head[72] == _CACHED:
            self._walk_names(struct.unpack_from("<Q", head, 88)[0])

    def check(self, address: int) -> None:
        """Validates what the library reads for the attributes of the object whose header is at `address`.

        Raises:
            ValueError: the header, or a heap that it points to, is damaged.
        """
        texts: dict[int, dict[int, int]] = {}
        try:
            for kind, content in self._messages(address) if self._known else ():
                if kind == _NAMES:
                    self._walk_names(struct.unpack_from("<Q", content, 8)[0])
                elif kind == _ATTRIBUTE:
                    for length, heap, index in _texts_of(content):
                        if heap not in texts:
                            texts[heap] = self._walk_texts(heap)
                        if length > texts[heap].get(index, 0):
                            raise ValueError("a text attribute is longer than its text")
                elif kind == _ATTRIBUTE_INFO and content[2 + 2 * (content[1] & 1) :][:8] != _NOWHERE:
                    for heap in self._all_texts():  # many attributes are stored in a separate tree
                        self._walk_texts(heap)
        except (struct.error, IndexError) as error:
            raise ValueError("the header of an object is damaged") from error

    def _messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Yields kind and content of the messages in an object's header and its continuations."""
        head = self._read(address, 64)
        if head[:4] == b"OHDR":
            flags = head[5]
            at = 6 + 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1)
            wide = 1 << (flags & 3)
            blocks = [(address + at + wide, int.from_bytes(head[at : at + wide], "little"))]
            message, ends = struct.Struct("<BHB" + "2x" * (flags >> 2 & 1)), 4
        else:
            blocks = [(address + 16, struct.unpack_from("<I", head, 8)[0])]
            message, ends = struct.Struct("<HHB3x"), 0
        for seen, (start, length) in enumerate(blocks):
            if seen > _MAX_BLOCKS:
                raise ValueError("the header of an object has a cycle")
            block, at = self._read(start, length), 0
            while at + message.size <= len(block):
                kind, n_bytes, _ = message.unpack_from(block, at)
                at += message.size + n_bytes
                content = block[at - n_bytes : at]
                if kind == _CONTINUATION:
                    offset, n_bytes = struct.unpack("<QQ", content)
                    blocks.append((offset + ends, n_bytes - 2 * ends))  # between a signature and a checksum
                else:
                    yield kind, content

    def _walk_names(self, heap: int) -> None:
        """Traverses the free list of the heap of a group's names."""
        head = self._read(heap, 32)
        if head[:4] != _NAMES_MARK:
            raise ValueError("the heap of a group's names is missing")
        length, free, start = struct.unpack_from("<QQQ", head, 8)
        if start + length > self._size:
            raise ValueError("the heap of a group's names extends beyond the file")
        names, seen = self._read(start, length), set[int]()
        while free != _LAST_FREE and free < length:
            if free in seen:
                raise ValueError("the heap of a group's names has a cycle")
            seen.add(free)
            free = struct.unpack_from("<Q", names, free)[0]

    def _all_texts(self) -> Iterator[int]:
        """Yields the offsets of everything in the file that looks like a heap of text."""
        for start in range(0, self._size, _PIECE):
            piece, at = self._read(start, _PIECE + len(_TEXT_MARK) - 1), -1
            while (at := piece.find(_TEXT_MARK, at + 1)) >= 0:
                yield start + at

    def _walk_texts(self, heap: int) -> dict[int, int]:
        """Traverses a heap of text; returns the lengths of its texts by their index."""
        head = self._read(heap, 16)
        if head[: len(_TEXT_MARK)] != _TEXT_MARK:
            return {}
        lengths: dict[int, int] = {}
        length = struct.unpack_from("<Q", head, 8)[0]
        if heap + length > self._size:
            raise ValueError("a heap of text extends beyond the file")
        content, at = self._read(heap, length), 16
        while at + _OBJECT.size <= length:
            index, _, _, n_bytes = _OBJECT.unpack_from(content, at)
            lengths[index] = n_bytes
            step = n_bytes if index == 0 else _OBJECT.size + -(-n_bytes // 8) * 8
            at += step
            if step < _OBJECT.size or at > length:
                raise ValueError("a heap of text is damaged")
        return lengths


def _texts_of(attribute: bytes) -> list[tuple[int, int, int]]:
    """Returns length, heap and index within it of each text of an attribute message."""
    version, _, name, kind, space = struct.unpack_from("<BBHHH", attribute)
    pad = 8 if version == 1 else 1
    at_type = 8 + (version == 3) + -(-name // pad) * pad
    if attribute[at_type] & 0xF != _VARIABLE_LENGTH:
        return []
    values = attribute[at_type + -(-kind // pad) * pad + -(-space // pad) * pad :]
    return list(struct.iter_unpack("<IQI", values[: len(values) // 16 * 16]))


def _starts(size: int) -> Iterator[int]:
    """Yields the offsets at which an HDF5 superblock may begin."""
    at = 0
    while at < size:
        yield at
        at = 2 * at or 512
