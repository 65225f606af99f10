"""The bag store: Parquet, one row group a bag, so that one bag is one read; labels and patients stay out."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs
from pyarrow import parquet as pq

from momkd_ray import storage
from momkd_ray.bags.readers import Bag
from momkd_ray.errors import InputError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    {
        "slide_id": pa.string(),
        "n_patches": pa.int32(),
        "width": pa.int32(),
        "dtype": pa.string(),
        "features": pa.large_binary(),  # (P, D) of `dtype`
        "coords": pa.large_binary(),  # (P, 2) int32; empty: there are none
        "edge_indptr": pa.large_binary(),  # (P + 1,) int32
        "edge_indices": pa.large_binary(),  # (M,) int32
        "sha256": pa.string(),  # of the four buffers, in this order
        "provenance": pa.string(),  # JSON
    }
)
# The figures are close to incompressible and each is read exactly once: every codec only costs time.
WRITER_OPTIONS = {"compression": "none", "use_dictionary": False, "write_statistics": False}

_BUFFERS = ("features", "coords", "edge_indptr", "edge_indices")
_DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_INT32 = np.dtype("<i4")
_OPEN_PARTS = 32  # a thread; each holds a file descriptor


def to_row(bag: Bag) -> dict[str, Any]:
    """One row of `SCHEMA`; the arrays as little-endian bytes."""
    buffers = {
        "features": _little_endian(bag.features, _DTYPES[bag.features.dtype.name]),
        "coords": b"" if bag.coords is None else _little_endian(bag.coords, _INT32),
        "edge_indptr": _little_endian(bag.edge_indptr, _INT32),
        "edge_indices": _little_endian(bag.edge_indices, _INT32),
    }
    return {
        "slide_id": bag.slide_id,
        "n_patches": bag.n_patches,
        "width": bag.width,
        "dtype": bag.features.dtype.name,
        **buffers,
        "sha256": digest(buffers),
        "provenance": json.dumps(bag.provenance, sort_keys=True),
    }


def _little_endian(array: NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    return array.astype(dtype, copy=False).tobytes()


def digest(row: Mapping[str, Any]) -> str:
    """SHA-256 over the four buffers of a row."""
    found = hashlib.sha256()
    for name in _BUFFERS:
        found.update(row[name])
    return found.hexdigest()


def from_row(row: Mapping[str, Any]) -> Bag:
    """The bag of a row; its arrays are read-only views of the row's buffers."""
    n_patches, width = int(row["n_patches"]), int(row["width"])
    coords = np.frombuffer(row["coords"], _INT32)
    return Bag(
        slide_id=row["slide_id"],
        features=np.frombuffer(row["features"], _DTYPES[row["dtype"]]).reshape(n_patches, width),
        coords=coords.reshape(n_patches, 2) if coords.size else None,
        edge_indptr=np.frombuffer(row["edge_indptr"], _INT32),
        edge_indices=np.frombuffer(row["edge_indices"], _INT32),
        provenance=json.loads(row["provenance"]),
    )


def row_at(table: pa.Table, index: int) -> dict[str, Any]:
    """One row of a table of `SCHEMA` for `from_row`, its large columns as Arrow buffers and not copied."""
    return {
        name: _slot(table.column(name), index) if name in _BUFFERS else table.column(name)[index].as_py()
        for name in SCHEMA.names
    }


def _slot(column: pa.ChunkedArray, index: int) -> pa.Buffer:
    """One binary value in place: an Arrow scalar would copy it."""
    values = column.slice(index, 1).chunk(0)
    _, offsets, data = values.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[values.offset : values.offset + 2].tolist()
    return data.slice(start, stop - start)


def bags_table(bags: Sequence[Bag]) -> pa.Table:
    """Bags as a table of `SCHEMA`, in their order."""
    return pa.Table.from_pylist([to_row(bag) for bag in bags], schema=SCHEMA)


class BagStore:
    """A finished store: what it holds, and random access to its bags.

    It may be used from several threads and pickled; open files stay behind.

    Attributes:
        uri: the folder, a local path or `s3://` URI.
        width: D of every bag.
        dtype: `float16` or `float32`.
        neighbors: k of the graphs.
        slides: indexed by `slide_id`: `part`, `row_group`, `n_patches`, `sha256`, `file` (size and time of
            the feature file that was ingested).
    """

    def __init__(self, uri: str, manifest: Mapping[str, Any]) -> None:
        self.uri = uri
        self.width: int = manifest["width"]
        self.dtype: str = manifest["dtype"]
        self.neighbors: int = manifest["neighbors"]
        self.slides = pd.DataFrame(manifest["slides"]).set_index("slide_id")
        self._rows: dict[str, Mapping[str, Any]] = {row["slide_id"]: row for row in manifest["slides"]}
        self._threads = threading.local()

    @classmethod
    def open(cls, uri: str) -> BagStore:
        """The store at a location, from its manifest alone.

        Raises:
            InputError: no manifest is there, or it is damaged or of another version.
        """
        location = storage.join(uri, MANIFEST)
        if not storage.exists(location):
            raise InputError(f"{uri} holds no finished bag store (no {MANIFEST}); run `momkd-ray ingest`")
        try:
            manifest = storage.read_json(location)
            if manifest["schema_version"] == SCHEMA_VERSION:
                return cls(uri, manifest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{location} is damaged; remove it and ingest again") from error
        raise InputError(
            f"{location} is of schema version {manifest['schema_version']}, this version reads "
            f"{SCHEMA_VERSION}; choose another store.uri or remove the store"
        )

    def read(self, slide_id: str, verify: bool = False) -> Bag:
        """One bag, by reading its row group only; `verify` also checks its SHA-256.

        Raises:
            InputError: the store has no such slide, or its part is missing or damaged.
        """
        entry = self._rows.get(slide_id)
        if entry is None:
            raise InputError(f"the bag store {self.uri} has no slide {slide_id}; run `momkd-ray ingest`")
        try:
            table = self._parts()(entry["part"]).read_row_group(entry["row_group"], use_threads=False)
            row = row_at(table, 0)
            intact = row["slide_id"] == slide_id and row["sha256"] == entry["sha256"]
            if intact and (not verify or digest(row) == entry["sha256"]):
                return from_row(row)
        except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
            raise InputError(self._damage(slide_id, entry["part"])) from error
        raise InputError(self._damage(slide_id, entry["part"]))

    def part_paths(self, parts: Sequence[str]) -> tuple[list[str], fs.FileSystem]:
        """Where parts lie: their paths, and the Arrow file system these are paths of."""
        system, folder = storage.filesystem(self.uri)
        return [storage.join(folder, part) for part in parts], system

    def _damage(self, slide_id: str, part: str) -> str:
        location = storage.join(self.uri, part)
        return f"{location} is missing or damaged at slide {slide_id}; remove it and ingest again"

    def _parts(self) -> Callable[[str], pq.ParquetFile]:
        """This thread's open parts: a ParquetFile may not be read by two threads at a time."""
        if not hasattr(self._threads, "open"):
            self._threads.open = lru_cache(maxsize=_OPEN_PARTS)(lambda part: open_part(self.uri, part))
        opened: Callable[[str], pq.ParquetFile] = self._threads.open
        return opened

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_threads"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._threads = threading.local()


def open_part(uri: str, part: str) -> pq.ParquetFile:
    """A part of a store, memory-mapped where it is local."""
    system, path = storage.filesystem(storage.join(uri, part))
    if isinstance(system, fs.LocalFileSystem):
        return pq.ParquetFile(path, memory_map=True)
    return pq.ParquetFile(system.open_input_file(path), pre_buffer=True)
