"""Stores bags as Parquet files ("parts") and a manifest; labels and patients are not in the store.

A row group holds one bag, as one uncompressed value per column, so any Parquet reader can read a part. The manifest
records at which byte of its part each buffer of a bag begins, so the package itself reads a bag with one contiguous
read and without a Parquet reader.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet as pq

from momkd_ray import storage
from momkd_ray.bags.bag_rows import BUFFERS, DTYPES, Row, content_sha256, from_row
from momkd_ray.errors import InputError, RunError
from momkd_ray.formats.arrays import Precision
from momkd_ray.formats.bag import Bag, Graph
from momkd_ray.formats.patch_scale import PatchScale

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
Entry = dict[str, Any]
"""A slide in the manifest.

It has `slide_id, part, n_patches, width, encoder, format, magnification, patch_px, sha256, file` and `at`.

`magnification` and `patch_px` are None where the feature file does not say them; they and `format` are absent in
older stores.
`file` is the stamp of the ingested feature file. `at` has `[first byte, bytes]` of each buffer in the part.
"""


@dataclass(frozen=True)
class StoreFormat:
    """Precision and graph, which all bags of one store share.

    Attributes:
        dtype: of the features.
        neighbors: k of the k-nearest-neighbour graph; 0 without a graph.
        graph: where the edges come from.
        schema_version: of manifest and parts.
    """

    dtype: Precision
    neighbors: int
    graph: Graph
    schema_version: int = SCHEMA_VERSION


def scale_of(entry: Mapping[str, Any]) -> PatchScale:
    """Returns magnification and patch size of a slide, as far as its entry has them."""
    return PatchScale(entry.get("magnification"), entry.get("patch_px"))


def merge_into_manifest(
    uri: str,
    bag_format: StoreFormat,
    encoder: str | None,
    width: int,
    entries: Mapping[str, Entry],
    ours: Collection[str],
) -> None:
    """Adds entries to the manifest, which completes the store; entries that others have added meanwhile stay.

    Args:
        uri: the store's folder.
        bag_format: precision and graph of the bags.
        encoder: what the features were extracted with, if known.
        width: D of the bags.
        entries: the slides that the store is to hold as far as this writer knows.
        ours: slides that this writer has checked: of these, the manifest keeps `entries` alone.

    Raises:
        InputError: another writer has meanwhile stored features of another format, width or encoder.
    """
    location = storage.join(uri, MANIFEST)

    def merged(content: bytes | None) -> bytes:
        if content is None:
            return _manifest(bag_format, encoder, width, entries).encode()
        other = BagStore.parse(uri, content)
        mine, theirs = (bag_format, width), (other.format, other.width)
        if mine != theirs or (encoder and other.encoder and encoder != other.encoder):
            raise InputError(
                f"another command has meanwhile stored features of another format, width or encoder in {uri}; choose "
                "another store.uri"
            )
        added = {slide_id: entry for slide_id, entry in other.entries.items() if slide_id not in ours}
        return _manifest(bag_format, encoder or other.encoder, width, {**entries, **added}).encode()

    storage.update(location, merged)


def _manifest(bag_format: StoreFormat, encoder: str | None, width: int, entries: Mapping[str, Entry]) -> str:
    slides = [entries[slide_id] for slide_id in sorted(entries)]
    manifest = asdict(bag_format) | {
        "encoder": encoder,
        "width": width,
        "n_slides": len(slides),
        "n_patches": sum(entry["n_patches"] for entry in slides),
        "parts": sorted({entry["part"] for entry in slides}),
        "slides": slides,
    }
    # one line per slide keeps a manifest of thousands readable and small
    head = json.dumps({k: v for k, v in manifest.items() if k != "slides"}, indent=2, allow_nan=False)
    rows = ",\n".join(json.dumps(entry, allow_nan=False) for entry in slides)
    return f'{head[:-2]},\n  "slides": [\n{rows}\n  ]\n}}\n'


class BagStore:
    """A complete store: its manifest, and random access to its bags. Thread-safe and picklable.

    Attributes:
        uri: the folder, a local path or `s3://` URI.
        width: D of every bag.
        encoder: what the features were extracted with; None where the feature files do not record it.
        format: precision and graph of every bag.
        entries: the manifest's entry of each slide, by slide.
        slides: the same as a table indexed by `slide_id`.
    """

    def __init__(self, uri: str, manifest: Mapping[str, Any]) -> None:
        self.uri = uri
        self.width: int = manifest["width"]
        self.encoder: str | None = manifest["encoder"]
        self.format = StoreFormat(manifest["dtype"], manifest["neighbors"], manifest["graph"])
        self.entries: dict[str, Entry] = {row["slide_id"]: row for row in manifest["slides"]}
        self.slides = pd.DataFrame(manifest["slides"]).set_index("slide_id")
        self._verified: set[str] = set()

    @property
    def scale(self) -> PatchScale:
        """Magnification and patch size of most bags, as far as the feature files record them."""
        return next(iter(self.scales(self.entries)), PatchScale())

    def scales(self, slides: Iterable[str]) -> list[PatchScale]:
        """Returns every magnification and patch size that the feature files of slides record, the most frequent first.

        Those that agree with a more frequent one are not repeated.
        """
        known = Counter(scale for slide in slides if (scale := scale_of(self.entries[slide])))
        distinct: list[PatchScale] = []
        for scale, _ in known.most_common():
            if not any(scale.agrees(other) for other in distinct):
                distinct.append(scale)
        return distinct

    def feature_format(self, slides: Iterable[str]) -> str | None:
        """Returns the layout of the feature files of slides, such as `trident`; None if unknown or several."""
        formats = {self.entries[slide].get("format") for slide in slides}
        return formats.pop() if len(formats) == 1 else None

    @classmethod
    def open(cls, uri: str) -> BagStore:
        """Opens the store at a location by reading its manifest alone.

        Raises:
            InputError: there is no manifest, or it is damaged or of another version.
        """
        location = storage.join(uri, MANIFEST)
        if not storage.exists(location):
            raise InputError(f"{uri} holds no complete bag store (no {MANIFEST}); run `momkd-ray ingest`")
        return cls.parse(uri, storage.read_bytes(location))

    @classmethod
    def parse(cls, uri: str, content: bytes) -> BagStore:
        """Reads the content of a manifest; raises as `open` does."""
        location = storage.join(uri, MANIFEST)
        try:
            manifest = json.loads(content)
            if manifest["schema_version"] == SCHEMA_VERSION:
                return cls(uri, manifest)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{location} is damaged; remove it and ingest again") from error
        raise InputError(
            f"{location} has schema version {manifest['schema_version']}, this version of momkd-ray reads "
            f"{SCHEMA_VERSION}; choose another store.uri or remove the store"
        )

    def read(self, slide_id: str) -> Bag:
        """Reads one bag; see `read_row`."""
        row = self.read_row(slide_id)
        try:
            return from_row(row)
        except (ValueError, LookupError, TypeError) as error:
            raise self._damaged(slide_id) from error

    def subset(self, slide_ids: Collection[str]) -> BagStore:
        """Returns the same store with some of its slides, to be sent to where they are read."""
        manifest = asdict(self.format) | {"width": self.width, "encoder": self.encoder}
        return BagStore(
            self.uri, manifest | {"slides": [self.entry(slide_id) for slide_id in dict.fromkeys(slide_ids)]}
        )

    def entry(self, slide_id: str) -> Entry:
        """Returns the manifest's entry of a slide.

        Raises:
            InputError: the store has no such slide.
        """
        entry = self.entries.get(slide_id)
        if entry is None:
            raise InputError(f"the bag store {self.uri} has no slide {slide_id}; run `momkd-ray ingest`")
        return entry

    def row_of(self, slide_id: str, buffers: Sequence[Any]) -> Row:
        """Returns the row of a slide with these buffers, in the order of `buffer_sizes`."""
        entry = self.entry(slide_id)
        row = {name: entry[name] for name in ("slide_id", "n_patches", "sha256")}
        return row | {"width": self.width, "dtype": self.format.dtype} | dict(zip(BUFFERS, buffers, strict=True))

    def read_row(self, slide_id: str, *, verify: bool = False) -> Row:
        """Reads the row of one bag in one contiguous read; a process verifies the SHA-256 when it first reads a bag.

        Args:
            slide_id: of the bag.
            verify: whether to verify it also when this process has done so before.

        Raises:
            InputError: the store has no such slide, or its part is missing or damaged.
        """
        entry = self.entry(slide_id)
        try:
            first, end = entry["at"][0][0], sum(entry["at"][-1])
            # memory of Arrow's pool is already mapped, so it is several times faster to fill than fresh pages
            data = np.frombuffer(pa.allocate_buffer(end - first), np.uint8)
            storage.read_into(self._part(slide_id), first, data)
            row = self.row_of(slide_id, [data[start - first : start - first + size] for start, size in entry["at"]])
            if (verify or slide_id not in self._verified) and content_sha256(row) != entry["sha256"]:
                raise self._damaged(slide_id)
        except MemoryError as error:
            sentence = f"there is not enough memory for slide {slide_id} ({self.nbytes(slide_id):,} bytes)"
            raise RunError(f"{sentence}; use fewer workers or a larger machine") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise self._damaged(slide_id) from error
        self._verified.add(slide_id)
        return row

    def read_features(self, slide_id: str, first: int, patches: int) -> NDArray[Any]:
        """Reads the features of consecutive patches of a slide (patches, D), whose hash is not verified.

        Raises:
            InputError: as `read_row`.
        """
        dtype = DTYPES[self.format.dtype]
        rows_RD = np.empty((patches, self.width), dtype)
        start, row_bytes = self.entry(slide_id)["at"][0][0], self.width * dtype.itemsize
        try:
            storage.read_into(self._part(slide_id), start + first * row_bytes, rows_RD.reshape(-1).view(np.uint8))
        except OSError as error:
            raise self._damaged(slide_id) from error
        return rows_RD

    def _part(self, slide_id: str) -> str:
        return storage.join(self.uri, self.entries[slide_id]["part"])

    def _damaged(self, slide_id: str) -> InputError:
        return InputError(
            f"{self._part(slide_id)} is missing or damaged at slide {slide_id}; remove it and ingest again"
        )

    def nbytes(self, slide_id: str) -> int:
        """Returns the bytes that a bag takes in memory."""
        return sum(size for _, size in self.entries[slide_id]["at"])

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_verified": set()}


def open_part(uri: str, part: str) -> pq.ParquetFile:
    """Opens a part of a store as a Parquet file."""
    return pq.ParquetFile(storage.open_file(storage.join(uri, part)))
