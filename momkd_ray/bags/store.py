"""The bag store: Parquet, one row group a bag, so that one bag is one read; labels and patients stay out.

Any Parquet reader can read a part. Ours needs no Parquet at all: a row group holds one uncompressed value a column,
so its manifest says at which byte of the part each buffer of a bag begins, and a bag is one contiguous read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet as pq

from momkd_ray import storage
from momkd_ray.errors import InputError
from momkd_ray.formats.arrays import Precision
from momkd_ray.formats.bag import Bag, Graph
from momkd_ray.input_faults import FileFaultError

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
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
# The figures are close to incompressible and each is read exactly once: every codec only costs time.
WRITER_OPTIONS = {"compression": "none", "use_dictionary": False, "write_statistics": False}

_BUFFERS = ("features", "coords", "edge_indptr", "edge_indices", "provenance")
_DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_INT32 = np.dtype("<i4")
_LARGEST_VALUE = 2**31 - 1  # Parquet counts the bytes of a value in an int32

Entry = dict[str, Any]  # a slide in the manifest


@dataclass(frozen=True)
class StoreFormat:
    """What all bags of one store have in common."""

    dtype: Precision
    neighbors: int
    graph: Graph
    schema_version: int = SCHEMA_VERSION


def to_row(bag: Bag) -> dict[str, Any]:
    """One row of `SCHEMA`; the arrays as little-endian bytes, not copied where they already are.

    Raises:
        FileFaultError: the features take more than Parquet holds in one value.
    """
    coords = np.zeros((0, 2), _INT32) if bag.coords is None else bag.coords
    buffers: dict[str, Any] = {
        "features": _little_endian(bag.features, _DTYPES[bag.features.dtype.name]),
        "coords": _little_endian(coords, _INT32),
        "edge_indptr": _little_endian(bag.edge_indptr, _INT32),
        "edge_indices": _little_endian(bag.edge_indices, _INT32),
        "provenance": json.dumps(bag.provenance, sort_keys=True).encode(),
    }
    if len(buffers["features"]) > _LARGEST_VALUE:
        raise FileFaultError(
            "misshapen",
            f"slide {bag.slide_id} has {bag.n_patches:,} patches of {bag.width} {bag.features.dtype.name} features, "
            "over the 2 GiB that one bag may take; set store.dtype to float16 or leave the slide out",
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
    """SHA-256 over what a bag is, not where it comes from: two slides of the same content have the same."""
    found = hashlib.sha256()
    for name in _BUFFERS[:-1]:
        found.update(row[name])
    return found.hexdigest()


def from_row(row: Mapping[str, Any]) -> Bag:
    """The bag of a row; its features are a view of the row's buffer."""
    n_patches, width = int(row["n_patches"]), int(row["width"])
    coords = np.frombuffer(row["coords"], _INT32).reshape(-1, 2)
    return Bag(
        slide_id=row["slide_id"],
        features=np.frombuffer(row["features"], _DTYPES[row["dtype"]]).reshape(n_patches, width),
        coords=coords if len(coords) else None,
        edge_indptr=np.frombuffer(row["edge_indptr"], _INT32),
        edge_indices=np.frombuffer(row["edge_indices"], _INT32),
        provenance=json.loads(bytes(row["provenance"])),
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
    """Bags as a table of `SCHEMA`, in their order; the buffers of a single bag are not copied."""
    rows = [to_row(bag) for bag in bags]
    columns = [
        _binary([row[field.name] for row in rows])
        if field.name in _BUFFERS
        else pa.array([row[field.name] for row in rows], field.type)
        for field in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _binary(values: Sequence[Any]) -> pa.LargeBinaryArray:
    ends = np.cumsum([0, *(len(value) for value in values)], dtype=np.int64)
    data = values[0] if len(values) == 1 else b"".join(values)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(data)]
    )


def buffer_sizes(table: pa.Table) -> list[int]:
    """Bytes of the buffers of the first bag of a table, in the order that `places` takes them."""
    return [len(_slot(table.column(name), 0)) for name in _BUFFERS]


def buffer_offsets(part: pq.FileMetaData, row_group: int, sizes: Sequence[int]) -> list[list[int]]:
    """Where in a part the buffers of a bag lie: `[first byte, bytes]` of features, coords, indptr, indices, provenance.

    An uncompressed column of one value without nulls ends with the value itself.

    Args:
        part: the metadata of the written part.
        row_group: the bag's.
        sizes: bytes of each buffer.
    """
    found = []
    columns = {name: index for index, name in enumerate(part.schema.names)}
    for name, size in zip(_BUFFERS, sizes, strict=True):
        chunk = part.row_group(row_group).column(columns[name])
        found.append([chunk.data_page_offset + chunk.total_compressed_size - size, size])
    return found


def write_manifest(uri: str, form: StoreFormat, encoder: str | None, width: int, entries: Mapping[str, Entry]) -> None:
    """Write what the store holds: its form, encoder, width, counts, and of each slide where and what it is."""
    slides = [entries[slide_id] for slide_id in sorted(entries)]
    manifest = asdict(form) | {
        "encoder": encoder,
        "width": width,
        "n_slides": len(slides),
        "n_patches": sum(entry["n_patches"] for entry in slides),
        "parts": sorted({entry["part"] for entry in slides}),
        "slides": slides,
    }
    # one slide a line: a manifest of thousands stays readable and small
    head = json.dumps({k: v for k, v in manifest.items() if k != "slides"}, indent=2, allow_nan=False)
    rows = ",\n".join(json.dumps(entry, allow_nan=False) for entry in slides)
    storage.write_text(storage.join(uri, MANIFEST), f'{head[:-2]},\n  "slides": [\n{rows}\n  ]\n}}\n')


class BagStore:
    """A finished store: what it holds, and random access to its bags.

    It may be used from several threads and pickled.

    Attributes:
        uri: the folder, a local path or `s3://` URI.
        width: D of every bag.
        encoder: what the features were extracted with, where their files say so.
        form: precision and graph of every bag.
        slides: indexed by `slide_id`: `part`, `n_patches`, `sha256`, `file` (size and time of the feature file that
            was ingested), and what else the manifest says.
    """

    def __init__(self, uri: str, manifest: Mapping[str, Any]) -> None:
        self.uri = uri
        self.width: int = manifest["width"]
        self.encoder: str | None = manifest["encoder"]
        self.form = StoreFormat(manifest["dtype"], manifest["neighbors"], manifest["graph"])
        self.entries: dict[str, Entry] = {row["slide_id"]: row for row in manifest["slides"]}
        self.slides = pd.DataFrame(manifest["slides"]).set_index("slide_id")
        self._verified: set[str] = set()

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

    def read(self, slide_id: str) -> Bag:
        """One bag, in one contiguous read; the first read of a bag by a process verifies its SHA-256.

        Raises:
            InputError: the store has no such slide, or its part is missing or damaged.
        """
        entry = self.entries.get(slide_id)
        if entry is None:
            raise InputError(f"the bag store {self.uri} has no slide {slide_id}; run `momkd-ray ingest`")
        location = storage.join(self.uri, entry["part"])
        first, end = entry["at"][0][0], sum(entry["at"][-1])
        try:
            # Arrow's pool hands out memory that is already mapped: several times faster to fill than fresh pages
            data = np.frombuffer(pa.allocate_buffer(end - first), np.uint8)
            storage.read_into(location, first, data)
            row: dict[str, Any] = {"slide_id": slide_id, "n_patches": entry["n_patches"]}
            row |= {"width": self.width, "dtype": self.form.dtype}
            for name, (start, size) in zip(_BUFFERS, entry["at"], strict=True):
                row[name] = data[start - first : start - first + size]
            if slide_id in self._verified or content_sha256(row) == entry["sha256"]:
                self._verified.add(slide_id)
                return from_row(row)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(self._damage(slide_id, location)) from error
        raise InputError(self._damage(slide_id, location))

    def _damage(self, slide_id: str, location: str) -> str:
        return f"{location} is missing or damaged at slide {slide_id}; remove it and ingest again"

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_verified": set()}


def open_part(uri: str, part: str) -> pq.ParquetFile:
    """A part of a store as a Parquet file."""
    return pq.ParquetFile(storage.open_file(storage.join(uri, part)))
