"""Decodes text of the usual encodings: UTF-8, UTF-16, Windows-1252."""

from __future__ import annotations

import codecs

from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError

_MARKS = (  # UTF-32's little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decoded(path: str, content: bytes) -> tuple[str, list[Understood]]:
    """Decodes a text file, whose lines then end in LF.

    Its mark, if it has one, names the encoding; otherwise it is UTF-8, UTF-16 if every second byte is null, or
    Windows-1252.

    Returns:
        The text, and what was recognised if it is not UTF-8.

    Raises:
        InputError: it is in none of these encodings, or it contains null characters.
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
        encoding = "cp1252"
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as second:
            raise InputError(
                f"{path} is neither UTF-8 (byte {error.start}) nor Windows-1252 (byte {second.start}) text: save it as "
                "UTF-8"
            ) from second
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path} has a null character in line {line}: it is damaged or no text, save it again")
    if encoding == "utf-8":
        return text, []
    name = "Windows-1252 (Latin-1)" if encoding == "cp1252" else encoding.upper()[:6]
    beyond = sum(1 for letter in text if ord(letter) > 127) if encoding == "cp1252" else 0
    counted = f", with {beyond:,} letters beyond ASCII" if beyond else ""
    return text, [Understood(path, "layout", f"it is read as {name} text{counted}", beyond)]


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
