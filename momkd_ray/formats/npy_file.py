"""Reads plain arrays from `.npy` and `.npz` files; nothing is ever unpickled."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momkd_ray.errors import InputError, RunError
from momkd_ray.formats.arrays import Contents, Stored
from momkd_ray.formats.source_file import SourceFile
from momkd_ray.input_faults import FileFaultError

_LARGEST = 2**36  # bytes of all arrays of an .npz, unpacked


@contextmanager
def opened(source: SourceFile) -> Iterator[Contents]:
    """Opens an `.npy` file, which holds the features, or an `.npz` file, whose arrays have names.

    The only array of an `.npz` file is the features, whatever its name.

    Args:
        source: the file.

    Raises:
        FileFaultError: the file is damaged, or holds anything but numbers.
        RunError: its storage cannot be reached.
    """
    arrays = _load(source)
    if len(arrays) == 1:
        arrays = {"features": next(iter(arrays.values()))}
    texts = {name: str(array) for name, array in arrays.items() if not array.ndim}  # such as the encoder's name
    yield Contents(
        source.path,
        "dict" if len(arrays) > 1 else "ndarray",
        [name for name in arrays if name not in texts],
        lambda name: _stored(name, arrays[name], source),
        lambda name: {} if name else texts,
    )


def _load(source: SourceFile) -> Mapping[str, NDArray[Any]]:
    try:
        with source.opened() as raw:
            content = io.BytesIO(raw.read())
        loaded = np.load(content, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"features": loaded}
        if sum(member.file_size for member in loaded.zip.infolist()) > _LARGEST:
            raise ValueError("its arrays are too large")
        return {name: loaded[name] for name in loaded.files}
    except (InputError, RunError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy each have exceptions of their own for damage
        cause = " ".join(str(error).split())[:150] or type(error).__name__
        if "allow_pickle" in cause:
            cause = "it holds Python objects, which are not loaded because they could run code"
        raise FileFaultError(
            "unreadable",
            f"{source.path} cannot be read as a NumPy file ({cause}): save the features again as a plain array",
        ) from error


def _stored(name: str, array: NDArray[Any], source: SourceFile) -> Stored:
    if array.dtype.kind not in "fiu":
        raise FileFaultError(
            "misshapen", f"{source.path}: '{name}' is of type {array.dtype}, not numbers; save it as a plain array"
        )
    rows_RC = array[0] if array.ndim == 3 and array.shape[0] == 1 else array

    def read(first: int, out: NDArray[Any]) -> None:
        np.copyto(out, rows_RC[first : first + len(out)])

    return Stored(name, array.shape, array.dtype, array.dtype.newbyteorder("=").name, read)
