"""Reads tensors and NumPy arrays from `.pt` files; nothing else is ever unpickled."""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from momkd_ray.errors import InputError, RunError
from momkd_ray.formats.arrays import Container, Contents, Stored
from momkd_ray.formats.source_file import SourceFile
from momkd_ray.input_faults import FileFaultError

if TYPE_CHECKING:
    import torch

_ZIP = b"PK\x03\x04"
_CUT = re.compile(r"not a zip file|unexpected EOF|Ran out of input", re.IGNORECASE)
_FOLDER = 0x10  # as zip marks one
_LOADING = threading.Lock()  # torch's set of allowed names is global
_NUMBERS = ("float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64")


@contextmanager
def opened(source: SourceFile) -> Iterator[Contents]:
    """Opens a `.pt` file that holds a tensor, a NumPy array, or a dictionary of these.

    Args:
        source: the file.

    Raises:
        FileFaultError: the file is damaged, or holds anything else.
        RunError: its storage cannot be reached.
    """
    loaded = _load(source)
    container: Container = "ndarray" if isinstance(loaded, _Array) else "tensor"
    if _is_pair(loaded):
        loaded = dict(zip(("features", "coords"), loaded, strict=True))
    if isinstance(loaded, dict):
        container = "dict"
    else:
        loaded = {"features": loaded}
    notes = {str(name): str(value) for name, value in loaded.items() if isinstance(value, str | int | float)}
    yield Contents(
        source.path,
        container,
        [name for name in loaded if isinstance(name, str) and name not in notes],
        lambda name: _stored(name, loaded[name], source),
        lambda name: {} if name else notes,
    )


def _is_pair(loaded: Any) -> bool:
    """Returns whether a file holds (features, coordinates) without names."""
    if not isinstance(loaded, tuple | list) or len(loaded) != 2:
        return False
    shapes: list[tuple[int, ...]] = [tuple(getattr(getattr(value, "array", value), "shape", ())) for value in loaded]
    return [len(shape) for shape in shapes] == [2, 2] and shapes[1][-1] == 2 != shapes[0][-1]


def _load(source: SourceFile) -> Any:
    import torch

    allowed: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    try:
        with source.opened() as raw, _LOADING, torch.serialization.safe_globals(allowed):
            zipped = raw.read(len(_ZIP)) == _ZIP
            if zipped:
                _check_records(raw, source.size)
            raw.seek(0)
            if zipped and source.local:
                return torch.load(source.local, map_location="cpu", weights_only=True, mmap=True)
            return torch.load(raw, map_location="cpu", weights_only=True)
    except (InputError, RunError):
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise _fault(source, error) from error


def _check_records(raw: BinaryIO, size: int) -> None:
    """Refuses records that PyTorch never writes, for which it would return uninitialised memory."""
    with zipfile.ZipFile(raw) as archive:
        for record in archive.infolist():
            stored = record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size
            folder = record.is_dir() or record.external_attr & _FOLDER
            if not stored or folder or record.header_offset + record.file_size > size:
                raise ValueError(f"its record {record.filename!r} is damaged")


def _fault(source: SourceFile, error: Exception) -> FileFaultError:
    cause = " ".join(str(error).rpartition("WeightsUnpickler error: ")[2].split())
    if isinstance(error, EOFError) or _CUT.search(cause):
        return FileFaultError(
            "truncated", f"{source.path} ends before it should ({source.size} bytes); copy or extract it again"
        )
    if match := re.search(r"GLOBAL (\S+)", cause):
        return FileFaultError(
            "unreadable",
            f"{source.path} holds {match[1]}, which is not loaded because it could run code; "
            "save the features as a tensor, or as a dictionary of tensors",
        )
    short = re.split(r"\. |Check the documentation", cause)[0].strip() or type(error).__name__
    return FileFaultError(
        "unreadable",
        f"{source.path} cannot be read as a PyTorch file ({short}); "
        "it is damaged or of another format: copy or extract it again",
    )


def _stored(name: str, value: Any, source: SourceFile) -> Stored:
    import torch

    if isinstance(value, _Array):
        values: Any = value.array
        dtype, precision = values.dtype, values.dtype.newbyteorder("=").name
    elif isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested:
        values = value.detach()
        precision = str(values.dtype).removeprefix("torch.")
        bits = "uint16" if precision == "bfloat16" else "V1"
        dtype = np.dtype(precision if precision in _NUMBERS else bits)
    else:
        raise FileFaultError(
            "misshapen", f"{source.path}: '{name}' is a {type(value).__name__}, not a tensor; save it as a tensor"
        )
    if values.ndim == 3 and values.shape[1] == 1 != values.shape[0]:  # (R, 1, C)
        values = values[:, 0]
    stored = Stored(
        name, tuple(values.shape), dtype, precision, lambda first, out: np.copyto(out, _rows(values, first, len(out)))
    )
    if stored.size * dtype.itemsize > source.size:
        raise FileFaultError(
            "misshapen",
            f"{source.path}: '{name}' has the shape {stored.shape}, for which the file is too small; extract it again",
        )
    return stored


def _rows(values: NDArray[Any] | torch.Tensor, first: int, n: int) -> NDArray[Any]:
    """Returns rows of (R, C) or (1, R, C) values as a NumPy array; bfloat16, unknown to NumPy, as uint16."""
    rows: Any = (values[0] if values.ndim == 3 else values)[first : first + n]
    if isinstance(rows, np.ndarray):
        return rows
    import torch

    if rows.dtype == torch.bfloat16:
        return np.asarray(rows.view(torch.int16).numpy()).view(np.uint16)
    return np.asarray(rows.numpy())


class _Dtype:
    """Replaces `numpy.dtype` while unpickling, and validates its state, which NumPy would not."""

    def __init__(self, code: str, *_: object) -> None:
        self._code, self._order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = state[1]

    def plain(self) -> np.dtype[Any]:
        """Returns the type, which must be one of numbers."""
        if self._order not in ("<", ">", "=", "|") or not re.fullmatch("[fiu][1248]", self._code):
            raise ValueError(f"an array of type {self._order}{self._code}")
        return np.dtype(self._order + self._code)


class _Array:
    """Replaces `numpy.ndarray` while unpickling: bytes that must fit their type and shape."""

    array: NDArray[Any]

    def __init__(self, *_: object) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        if min(shape, default=0) < 0:
            raise ValueError(f"an array of shape {shape}")
        self.array = np.frombuffer(content, dtype.plain()).reshape(shape, order="F" if fortran else "C")


def _no_bytes() -> bytes:
    """Replaces `bytes`, which a pickle calls for an array without values."""
    return b""


_STAND_INS: dict[str, Any] = {
    "builtins.bytes": _no_bytes,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray._reconstruct": _Array,  # its name in NumPy 1
}
