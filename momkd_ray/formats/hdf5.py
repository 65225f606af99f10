"""Reads arrays from HDF5 files that may be damaged: fast, and never values that were not written.

TRIDENT writes one chunk per patch, which HDF5 fetches one by one. Where the bytes in the file are those in memory, they
are read by their offsets, adjacent chunks together; HDF5 reads all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO

import h5py
import numpy as np
from h5py import h5d, h5g, h5s, h5t, h5z
from numpy.typing import NDArray

from momkd_ray.errors import RunError
from momkd_ray.formats.arrays import Contents, Stored
from momkd_ray.formats.hdf5_heap_check import Heaps
from momkd_ray.formats.source_file import SourceFile
from momkd_ray.input_faults import OPEN_ELSEWHERE, FileFaultError

# HDF5 reports damage by any of these, depending on the damaged byte.
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
_BFLOAT16_BITS = (15, 7, 8, 0, 7)  # bits: sign at 15; exponent from 7, 8 long; mantissa from 0, 7 long
_NUMBERS_AND_TEXT = (h5t.INTEGER, h5t.FLOAT, h5t.ENUM, h5t.STRING)
_MAX_COMPRESSION = 1100  # values per stored byte; deflate reaches at most 1032


@dataclass(frozen=True)
class _Runs:
    """Byte offsets of an array's rows: run i holds rows `first_N[i]` to `first_N[i + 1]`, from `offset_N[i]` on."""

    first_N: NDArray[np.int64]
    offset_N: NDArray[np.int64]


@contextmanager
def opened(source: SourceFile) -> Iterator[Contents]:
    """Opens an HDF5 file.

    Args:
        source: the file.

    Raises:
        FileFaultError: the file is damaged or of another format; also while the arrays are read.
        RunError: its storage cannot be reached.
    """
    try:
        with source.opened() as raw:
            heaps = Heaps(lambda offset, length: _read_bytes(source, raw, offset, length), source.size)
            heaps.check_names()
            # each chunk is read once, so none is cached
            with h5py.File(source.local or raw, "r", rdcc_nbytes=0) as file:
                reader = _Reader(source, file, raw, heaps)
                yield Contents(source.path, "hdf5", list(file), reader.stored, cache(reader.attributes))
    except _DAMAGE as error:
        if "unable to lock file" in str(error):
            raise _open_elsewhere(source) from None
        if isinstance(error, MemoryError) and _is_within(error, source.size * _MAX_COMPRESSION):
            raise RunError(
                f"there is not enough memory to read {source.path} ({error}); free memory or use a larger machine, "
                "then run the same command again"
            ) from error
        raise _fault(source, error) from error


def _open_elsewhere(source: SourceFile) -> FileFaultError:
    return FileFaultError(
        OPEN_ELSEWHERE,
        f"{source.path} is open for writing in another program; close it there, or wait until it is written, and run "
        "the same command again",
    )


def _is_within(error: MemoryError, most_bytes: int) -> bool:
    """Tells whether NumPy was asked for no more memory than the file's values can take: else the file is damaged."""
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    return shape is not None and dtype is not None and math.prod(shape) * dtype.itemsize <= most_bytes


def _fault(source: SourceFile, error: Exception) -> FileFaultError:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) adds quotes
    cause = " ".join(str(message).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        return FileFaultError(
            "unreadable", f"{source.path} asks for more memory than there is; extract it again or use a larger machine"
        )
    if "truncated file" in cause:
        return FileFaultError(
            "truncated", f"{source.path} ends before it should ({source.size} bytes); copy or extract it again"
        )
    return FileFaultError(
        "unreadable",
        f"{source.path} cannot be read as HDF5 ({cause}); it is damaged or of another format: copy or extract it again",
    )


@dataclass(frozen=True)
class _Reader:
    source: SourceFile
    file: h5py.File
    raw: BinaryIO
    heaps: Heaps

    def attributes(self, name: str) -> dict[str, str]:
        holder = self._dataset(name) if name else self.file
        if name:
            self.heaps.check(_file_and_address(holder)[1])
        attributes: dict[str, str] = {}
        for key in holder.attrs:
            attribute = holder.attrs.get_id(key)
            if attribute.get_storage_size() > self.source.size:
                raise ValueError(f"the attribute {key} is larger than the file")
            if attribute.get_type().get_class() in _NUMBERS_AND_TEXT:  # HDF5 crashes on others that are damaged
                attributes[str(key)] = _text(holder.attrs[key])
        return attributes

    def stored(self, name: str) -> Stored:
        dataset = self._dataset(name)
        shape = tuple(int(length) for length in dataset.shape or ())
        dtype, precision, as_in_file = self._type(dataset)
        self._check_written(dataset, shape, dtype.itemsize)
        in_runs = as_in_file and self._has_runs(dataset, shape)
        runs = cache(lambda: self._runs(dataset, shape, dtype.itemsize) if in_runs else None)

        def read(first: int, out: NDArray[Any]) -> None:
            offsets = runs()
            if offsets is not None:
                self._read_runs(name, offsets, first, out)
                return
            try:
                _read_by_hdf5(dataset, first, out, as_stored=precision == "bfloat16")
            except OSError as error:
                raise self._missing_filter(dataset) or error from error

        if len(shape) == 3 and shape[1] == 1 != shape[0]:  # (R, 1, C)
            return Stored(name, (shape[0], shape[2]), dtype, precision, read, (dataset.chunks or (1,))[0])
        rows_at_once = 1 if in_runs or dataset.chunks is None else dataset.chunks[-2:][0]
        return Stored(name, shape, dtype, precision, read, rows_at_once)

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = self.file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise FileFaultError("misshapen", f"{self.source.path}: '{name}' is not a dataset; extract it again")
        in_this_file = _file_and_address(dataset)[0] == _file_and_address(self.file)[0]
        if not in_this_file or dataset.is_virtual or dataset.external:
            raise FileFaultError(
                "unreadable",
                f"{self.source.path}: the values of '{name}' lie in other files; write them into this one (h5repack)",
            )
        return dataset

    def _type(self, dataset: h5py.Dataset) -> tuple[np.dtype[Any], str, bool]:
        """Returns the values' type in memory, its name, and whether the bytes in the file have that type."""
        in_file = dataset.id.get_type()
        if isinstance(in_file, h5t.TypeFloatID) and in_file.get_size() == 2 and in_file.get_fields() == _BFLOAT16_BITS:
            return np.dtype(">u2" if in_file.get_order() == h5t.ORDER_BE else "<u2"), "bfloat16", True
        dtype = dataset.dtype
        if dtype.itemsize == 2 and dtype.kind in "uV" and self._is_bfloat16(dataset.name[1:]):
            return np.dtype("<u2") if dtype.kind == "V" else dtype, "bfloat16", True
        if dtype.kind == "f" and in_file.get_size() != dtype.itemsize:
            return dtype, f"float{8 * in_file.get_size()}", False
        return dtype, dtype.newbyteorder("=").name, dtype.kind in "fiu" and h5t.py_create(dtype) == in_file

    def _is_bfloat16(self, name: str) -> bool:
        """Returns whether an attribute of the array or of the file names its 16-bit values bfloat16."""
        texts = [*self.attributes(name).values(), *self.attributes("").values()]
        return any("bfloat16" in text.lower() or text.lower() == "bf16" for text in texts)

    def _check_written(self, dataset: h5py.Dataset, shape: tuple[int, ...], itemsize: int) -> None:
        """Refuses an array with unwritten values, which HDF5 would fill with zeros."""
        n_bytes = math.prod(shape) * itemsize
        filtered = dataset.id.get_create_plist().get_nfilters() > 0
        if n_bytes == 0:
            return
        if not filtered and n_bytes > self.source.size:
            raise self._not_written(dataset, shape)
        if dataset.chunks is None:
            if dataset.id.get_storage_size() < n_bytes:
                raise self._not_written(dataset, shape)
        else:
            sides = zip(shape, dataset.chunks, strict=True)
            if dataset.id.get_num_chunks() < math.prod(-(-length // chunk) for length, chunk in sides):
                raise self._not_written(dataset, shape)
            if n_bytes > _MAX_COMPRESSION * dataset.id.get_storage_size():
                raise self._not_written(dataset, shape)

    def _not_written(self, dataset: h5py.Dataset, shape: tuple[int, ...]) -> FileFaultError:
        return FileFaultError(
            "truncated",
            f"{self.source.path}: '{dataset.name[1:]}' was not written to its end (its {' x '.join(map(str, shape))} "
            "values are not all in the file); extract it again",
        )

    def _has_runs(self, dataset: h5py.Dataset, shape: tuple[int, ...]) -> bool:
        """Returns whether each row is contiguous in the file, without filters."""
        if dataset.id.get_create_plist().get_nfilters() or self.file.userblock_size or len(shape) < 2:
            return False
        *outer, _, columns = dataset.chunks or shape
        return math.prod(outer) == math.prod(shape[:-2]) == 1 and columns == shape[-1] > 0

    def _runs(self, dataset: h5py.Dataset, shape: tuple[int, ...], itemsize: int) -> _Runs | None:
        """Determines the byte offsets of the rows; None if the values are in the object's header.

        The offsets of a damaged file may be wrong, so they are checked against the file's size and each other.
        """
        n_rows, rows_each = shape[-2], shape[-2] if dataset.chunks is None else dataset.chunks[-2]
        n_bytes = rows_each * shape[-1] * itemsize
        firsts, offsets, sizes = list[int](), list[int](), list[int]()

        def append(chunk: Any) -> None:  # keeping the chunk objects would trigger the garbage collector
            firsts.append(chunk.chunk_offset[-2] if chunk.chunk_offset else -1)
            offsets.append(chunk.byte_offset)
            sizes.append(chunk.size)

        if dataset.chunks is not None:
            dataset.id.chunk_iter(append)
        elif (start := dataset.id.get_offset()) is not None:
            append(h5d.StoreInfo((0, 0), 0, start, n_bytes))
        else:
            return None
        if None in offsets or set(sizes) != {n_bytes}:
            raise self._bad_index(dataset)
        first_N, offset_N = np.array(firsts), np.array(offsets, np.int64)
        order_N = np.argsort(first_N)
        first_N, offset_N = first_N[order_N], offset_N[order_N]
        if not np.array_equal(first_N, np.arange(0, n_rows, rows_each)) or _overlap(offset_N, n_bytes):
            raise self._bad_index(dataset)
        if offset_N.min() < 0 or offset_N.max() > self.source.size - n_bytes:
            raise self._not_written(dataset, shape)
        starts_N = np.r_[True, np.diff(offset_N) != n_bytes]
        return _Runs(np.r_[first_N[starts_N], n_rows], offset_N[starts_N])

    def _bad_index(self, dataset: h5py.Dataset) -> FileFaultError:
        return FileFaultError(
            "unreadable",
            f"{self.source.path}: the index of the chunks of '{dataset.name[1:]}' is damaged; copy or extract it again",
        )

    def _missing_filter(self, dataset: h5py.Dataset) -> FileFaultError | None:
        """Builds the fault of an array whose compression filter is not installed; None if all are."""
        options = dataset.id.get_create_plist()
        for code, _, _, filter_name in (options.get_filter(i) for i in range(options.get_nfilters())):
            if not h5z.filter_avail(code):
                return FileFaultError(
                    "unreadable",
                    f"{self.source.path}: '{dataset.name[1:]}' is compressed by {_text(filter_name) or code}, which is "
                    "not installed; write it without compression (h5repack -f NONE)",
                )
        return None

    def _read_runs(self, name: str, runs: _Runs, first: int, out: NDArray[Any]) -> None:
        row_bytes = out.shape[1] * out.itemsize
        view = out.reshape(-1).view(np.uint8).data
        row, stop = first, first + len(out)
        i = int(np.searchsorted(runs.first_N, first, side="right")) - 1
        while row < stop:
            end = min(int(runs.first_N[i + 1]), stop)
            self.raw.seek(int(runs.offset_N[i]) + (row - int(runs.first_N[i])) * row_bytes)
            self._fill(name, view[(row - first) * row_bytes : (end - first) * row_bytes])
            row, i = end, i + 1

    def _fill(self, name: str, view: memoryview) -> None:
        while len(view):
            n = self.raw.readinto(view)  # type: ignore[attr-defined]
            if not n:
                raise FileFaultError(
                    "truncated", f"{self.source.path} became shorter while '{name}' was read; extract it again"
                )
            view = view[n:]


def _overlap(offset_N: NDArray[np.int64], n_bytes: int) -> bool:
    return bool((np.diff(np.sort(offset_N)) < n_bytes).any())


def _read_by_hdf5(dataset: h5py.Dataset, first: int, out: NDArray[Any], *, as_stored: bool) -> None:
    """Reads the rows from `first` on by HDF5, without conversion if `as_stored`."""
    outer = len(dataset.shape) - 2
    space = dataset.id.get_space()
    if outer == 1 and dataset.shape[1] == 1 != dataset.shape[0]:  # (R, 1, C)
        space.select_hyperslab((first, 0, 0), (out.shape[0], 1, out.shape[1]))
    else:
        space.select_hyperslab((0,) * outer + (first, 0), (1,) * outer + out.shape)
    dataset.id.read(h5s.create_simple(out.shape), space, out, dataset.id.get_type() if as_stored else None)


def _file_and_address(holder: h5py.HLObject) -> tuple[Any, int]:
    """Returns the file that an object lies in, and the address of its header there."""
    info = h5g.get_objinfo(holder.id)
    return info.fileno, info.objno[0] + (info.objno[1] << 32)


def _read_bytes(source: SourceFile, raw: BinaryIO, offset: int, length: int) -> bytes:
    start = min(offset, source.size)
    raw.seek(start)
    return raw.read(min(length, source.size - start))


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
