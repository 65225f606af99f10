"""Unpacks compressed tables: .gz, .bz2, .xz, .zst, and .zip with one table within."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import PurePosixPath

import pyarrow as pa

from momkd_ray.errors import InputError


def _zstd(content: bytes) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        unpacked: bytes = stream.read()
    return unpacked


_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bgz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _zstd,
}
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
COMPRESSIONS = (*_UNPACK, ".zip")


def unpack(path: str, content: bytes, tables: Collection[str]) -> tuple[str, bytes]:
    """Unpacks a file whose suffix or first bytes say that it is compressed, as often as it is.

    Args:
        path: of the file, for its suffix and for messages.
        content: its bytes.
        tables: suffixes of tables, by which the member of a .zip is found.

    Returns:
        The suffix of the table within, '' if none is left, and its bytes.

    Raises:
        InputError: it is damaged, encrypted, or an archive of no or several tables.
    """
    name = PurePosixPath(path).name.lower()
    for _ in range(3):
        suffix = PurePosixPath(name).suffix
        packed = suffix if suffix in COMPRESSIONS else next((s for m, s in _MAGIC.items() if content.startswith(m)), "")
        if not packed:
            break
        if suffix == packed:
            name = name[: -len(suffix)]
        if PurePosixPath(name).suffix == ".tar":
            raise InputError(f"{path} is an archive of files: unpack it, and name the table in it")
        if packed == ".zip":
            name, content = _member(path, name, content, tables)
        elif not content:
            raise InputError(f"{path} is empty")
        else:
            content = _unpacked(path, packed, content)
    return PurePosixPath(name).suffix, content


def _unpacked(path: str, packed: str, content: bytes) -> bytes:
    try:
        return _UNPACK[packed](content)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise InputError(
            f"{path} cannot be unpacked as {packed}, it is damaged or cut off ({_one_line(error)}): copy or save it "
            "again"
        ) from error


def _member(path: str, name: str, content: bytes, tables: Collection[str]) -> tuple[str, bytes]:
    """Returns name and bytes of the only table in a .zip."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            inside = [info.filename for info in archive.infolist() if not info.is_dir()]
            # the Finder's copies, and hidden files
            inside = [member for member in inside if not any(p[:1] in "._" for p in member.split("/"))] or inside
            if len(inside) > 1:
                inside = [member for member in inside if _suffix(member) in tables]
            if len(inside) != 1:
                found = f"{len(inside)} tables ({', '.join(inside[:4])})" if inside else "no table"
                raise InputError(f"{path} holds {found}: unpack it, and name the one that is meant")
            own = PurePosixPath(inside[0].lower()).name
            return own if _suffix(own) or not PurePosixPath(name).suffix else name, archive.read(inside[0])
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"{path} cannot be unpacked as .zip, it is damaged or cut off ({_one_line(error)}): copy or save it again"
        ) from error
    except (RuntimeError, NotImplementedError) as error:  # a password, or a compression that zipfile lacks
        raise InputError(f"{path} cannot be unpacked ({_one_line(error)}): unpack it, and name the table") from error


def _suffix(member: str) -> str:
    path = PurePosixPath(member.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
