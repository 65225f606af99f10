"""Decodes text of the usual encodings: UTF-8, UTF-16, UTF-32, Windows-1252, or the one that is configured."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError

_MARKS = (  # UTF-32's little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# encodings of East Asia, each with the bytes that most of its usual characters begin with
_EAST_ASIAN = {
    "gb18030": re.compile(rb"[\xb0-\xd7][\xa1-\xfe]"),
    "shift_jis": re.compile(rb"[\x82\x83\x88-\x97][\x40-\x7e\x80-\xfc]"),
    "big5": re.compile(rb"[\xa4-\xc6][\x40-\x7e\xa1-\xfe]"),
    "euc_kr": re.compile(rb"[\xb0-\xc8][\xa1-\xfe]"),
}
_chosen: ContextVar[str | None] = ContextVar("encoding of tables", default=None)


@contextmanager
def assumed_encoding(encoding: str | None) -> Iterator[None]:
    """Decodes tables without a mark and that are no UTF-8 by this encoding within the block; None finds it."""
    token = _chosen.set(encoding)
    try:
        yield
    finally:
        _chosen.reset(token)


def decoded(path: str, content: bytes) -> tuple[str, list[Understood]]:
    """Decodes a text file, whose lines then end in LF.

    Its mark, if it has one, names the encoding; otherwise it is UTF-8, UTF-16 if every second byte is null, the
    configured one, or Windows-1252, unless that looks like text of East Asia.

    Returns:
        The text, and what was recognised if it is not UTF-8.

    Raises:
        InputError: it is in none of these encodings, it contains null characters, or several may be meant.
    """
    encoding, start = _encoding(content)
    try:
        text = content[start:].decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or start:
            raise InputError(
                f"{path} begins as {encoding.upper()} text but is damaged at byte {start + error.start}: save it "
                "again, as UTF-8"
            ) from error
        encoding, text = _not_utf8(path, content, error.start)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path} has a null character in line {line}: it is damaged or no text, save it again")
    if encoding == "utf-8":
        return text, []
    names = {"cp1252": "Windows-1252 (Latin-1)"}
    name = names.get(encoding, encoding.upper()[:6] if encoding.startswith("utf") else encoding)
    beyond = 0 if encoding.startswith("utf") else sum(1 for letter in text if ord(letter) > 127)
    counted = f", with {beyond:,} letters beyond ASCII" if beyond else ""
    return text, [Understood(path, "layout", f"it is read as {name} text{counted}", beyond)]


def _not_utf8(path: str, content: bytes, at: int) -> tuple[str, str]:
    """Returns the encoding of text that is no UTF-8, and the text."""
    chosen = _chosen.get()
    if chosen is not None:
        try:
            return chosen, content.decode(chosen)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not {chosen} text (byte {error.start}), as cohort.encoding says: name another, or save it "
                "as UTF-8"
            ) from error
    if possible := _east_asian(content):
        cures = ", or to ".join(possible[:3])
        raise InputError(
            f"{path} is not UTF-8 (byte {at}) and may be text in {' or '.join(possible[:3])}: set cohort.encoding to "
            f"{cures}, whichever it is (cp1252 for Western Europe, cp1251 for Cyrillic), or save the table as UTF-8"
        )
    try:
        return "cp1252", content.decode("cp1252")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is neither UTF-8 (byte {at}) nor Windows-1252 (byte {error.start}) text: save it as UTF-8, or set "
            "cohort.encoding"
        ) from error


def _east_asian(content: bytes) -> list[str]:
    """Returns the encodings of East Asia that the text may be in, the likeliest first; none if it is not like them.

    Letters with accents stand alone between others; characters of East Asia take two bytes each and stand in groups.
    """
    groups = re.findall(rb"[\x80-\xff][\x40-\xff]*[\x80-\xff][\x40-\xff]*|[\x80-\xff][\x40-\x7e]?", content[:200_000])
    double = [group for group in groups if len(re.findall(rb"[\x80-\xff]", group)) * 2 > len(group) and len(group) > 1]
    if not groups or len(double) * 2 <= len(groups):
        return []
    usual = {}
    for encoding, begins in _EAST_ASIAN.items():
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            continue
        usual[encoding] = sum(2 * len(begins.findall(group)) for group in double)
    return sorted(usual, key=lambda encoding: -usual[encoding])


def _encoding(content: bytes) -> tuple[str, int]:
    """Returns the encoding, and the length of the mark that names it."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return encoding, len(mark)
    head = content[:1000]
    if len(head) >= 4 and len(head) % 2 == 0:
        for encoding, null in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if null.count(0) > 0.8 * len(null):
                return encoding, 0
    return "utf-8", 0
