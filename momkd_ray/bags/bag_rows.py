"""Bags as rows of Arrow and Parquet: the columns, and where a bag's bytes lie in a part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet as pq

from momkd_ray.formats.bag import Bag
from momkd_ray.input_faults import FileFaultError

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)  # a column without nulls stores its bytes and nothing else
        for name, kind in {
            "slide_id": pa.string(),
            "n_patches": pa.int32(),
            "width": pa.int32(),
            "dtype": pa.string(),
            "features": pa.large_binary(),  # (P, D) of `dtype`
            "coords": pa.large_binary(),  # (P, 2) int32, or nothing where the slide has none
            "edge_indptr": pa.large_binary(),  # (P + 1,) int32
            "edge_indices": pa.large_binary(),  # (M,) int32
            "provenance": pa.large_binary(),  # JSON
            "sha256": pa.string(),  # of features, coords and edges, in this order
        }.items()
    ]
)
# features hardly compress and each is read once an epoch, so any codec only costs time
WRITER_OPTIONS = {"compression": "none", "use_dictionary": False, "write_statistics": False}

BUFFERS = ("features", "coords", "edge_indptr", "edge_indices", "provenance")
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_INT32 = np.dtype("<i4")
_LARGEST_VALUE = 2**31 - 1  # Parquet counts the bytes of a value in an int32

Row = dict[str, Any]
"""A bag as one row of `SCHEMA`: its buffers as anything with the buffer protocol."""


def to_row(bag: Bag) -> Row:
    """Converts a bag to one row of `SCHEMA`; arrays that are little-endian and contiguous are not copied.

    Raises:
        FileFaultError: the features exceed 2 GiB, the most that Parquet holds in one value.
    """
    coords = np.zeros((0, 2), _INT32) if bag.coords is None else bag.coords
    buffers: dict[str, Any] = {
        "features": _little_endian(bag.features, DTYPES[bag.features.dtype.name]),
        "coords": _little_endian(coords, _INT32),
        "edge_indptr": _little_endian(bag.edge_indptr, _INT32),
        "edge_indices": _little_endian(bag.edge_indices, _INT32),
        "provenance": json.dumps(bag.provenance, sort_keys=True).encode(),
    }
    if len(buffers["features"]) > _LARGEST_VALUE:
        raise FileFaultError(
            "misshapen",
            f"slide {bag.slide_id} has {bag.n_patches:,} patches of {bag.width} {bag.features.dtype.name} features, "
            "more than the 2 GiB that one bag may take; set store.dtype to float16 or leave the slide out",
        )
    return {
        "slide_id": bag.slide_id,
        "n_patches": bag.n_patches,
        "width": bag.width,
        "dtype": bag.features.dtype.name,
        **buffers,
        "sha256": content_sha256(buffers),
    }


def _little_endian(array: NDArray[Any], dtype: np.dtype[Any]) -> memoryview:
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data


def content_sha256(row: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of features, coordinates and edges, which two slides of the same content share."""
    sha256 = hashlib.sha256()
    for name in BUFFERS[:-1]:
        sha256.update(row[name])
    return sha256.hexdigest()


def from_row(row: Mapping[str, Any]) -> Bag:
    """Converts a row to a bag whose arrays are views of the row's buffers."""
    n_patches, width = int(row["n_patches"]), int(row["width"])
    coords = np.frombuffer(row["coords"], _INT32).reshape(-1, 2)
    return Bag(
        slide_id=row["slide_id"],
        features=np.frombuffer(row["features"], DTYPES[row["dtype"]]).reshape(n_patches, width),
        coords=coords if len(coords) else None,
        edge_indptr=np.frombuffer(row["edge_indptr"], _INT32),
        edge_indices=np.frombuffer(row["edge_indices"], _INT32),
        provenance=json.loads(bytes(row["provenance"])),
    )


def rows_table(rows: Sequence[Row]) -> pa.Table:
    """Builds an Arrow table of `SCHEMA` from rows, in their order; the buffers of a single row are not copied."""
    columns = [
        _binary_array([row[field.name] for row in rows])
        if field.name in BUFFERS
        else pa.array([row[field.name] for row in rows], field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _binary_array(values: Sequence[Any]) -> pa.LargeBinaryArray:
    offsets = np.cumsum([0, *(len(value) for value in values)], dtype=np.int64)
    data = values[0] if len(values) == 1 else b"".join(values)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def row_at(table: pa.Table, index: int) -> Row:
    """Returns one row of a table of `SCHEMA`, its buffers as views of the table's memory."""
    return {
        name: _value_buffer(table.column(name), index) if name in BUFFERS else table.column(name)[index].as_py()
        for name in SCHEMA.names
    }


def _value_buffer(column: pa.ChunkedArray, index: int) -> pa.Buffer:
    """A binary value without a copy, which `as_py` of an Arrow scalar would make."""
    values = column.slice(index, 1).chunk(0)
    _, offsets, data = values.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[values.offset : values.offset + 2].tolist()
    return data.slice(start, stop - start)


def buffer_sizes(row: Row) -> list[int]:
    """Returns the bytes of a row's buffers, in the order that `buffer_offsets` takes them."""
    return [len(row[name]) for name in BUFFERS]


def buffers_of(row: Row) -> list[Any]:
    """Returns a row's buffers, in the order that `BagStore.row_of` takes them."""
    return [row[name] for name in BUFFERS]


def buffer_offsets(part: pq.FileMetaData, row_group: int, sizes: Sequence[int]) -> list[list[int]]:
    """Computes where in a part the buffers of a bag lie.

    An uncompressed column of one value without nulls ends with the value itself.

    Args:
        part: the metadata of the written part.
        row_group: index of the bag's row group.
        sizes: bytes of each buffer.

    Returns:
        `[first byte, bytes]` of features, coords, edge_indptr, edge_indices and provenance.
    """
    columns = {name: index for index, name in enumerate(part.schema.names)}
    offsets = []
    for name, size in zip(BUFFERS, sizes, strict=True):
        chunk = part.row_group(row_group).column(columns[name])
        offsets.append([chunk.data_page_offset + chunk.total_compressed_size - size, size])
    return offsets
