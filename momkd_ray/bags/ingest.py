"""Ingests feature files into the bag store: parallel tasks each write one part, and the manifest completes the store.

A part records in its footer which feature files it was made from. A job that was interrupted, or is given more
slides, therefore keeps every bag that is already stored, however slides were divided into parts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet as pq

from momkd_ray import storage
from momkd_ray.bags.bag_rows import SCHEMA, WRITER_OPTIONS, Row, buffer_offsets, buffer_sizes, rows_table, to_row
from momkd_ray.bags.consistency import (
    duplicate_content_faults,
    mixed_encoder_faults,
    mixed_scale_faults,
    slide_vector_faults,
)
from momkd_ray.bags.store import MANIFEST, BagStore, Entry, StoreFormat, merge_into_manifest, open_part
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag, Format, Recipe
from momkd_ray.formats.patch_scale import patch_scale
from momkd_ray.formats.readers import read_bag
from momkd_ray.formats.source_file import missing_file
from momkd_ray.input_faults import REJECTED, Fault, FileFaultError, OnError, raise_faults, record_faults
from momkd_ray.ray_runtime.cluster import total_resource
from momkd_ray.ray_runtime.parallel_map import parallel_map
from momkd_ray.ray_runtime.small_work import work_on_files

OnProgress = Callable[[int, int], None]

_FOOTER_KEY = b"momkd_ray.part"
_PARTS_PER_CPU = 8  # no CPU is idle for long at the end, and progress is visible
_FOOTER_READERS = 16


@dataclass(frozen=True)
class _Source:
    """A feature file as its folder lists it.

    Attributes:
        file: stamp of the file's version: size and time of change; on S3 size and ETag.
    """

    slide_id: str
    path: str
    file: str
    bytes: int


def store_format(config: Config) -> StoreFormat:
    """Returns the store format that a configuration asks for."""
    store, graph = config.store, config.features.graph
    return StoreFormat(store.dtype, 0 if graph == "none" else store.neighbors, graph)


def is_current(uri: str, slides: pd.DataFrame, bag_format: StoreFormat) -> bool:
    """Tells whether a complete store holds the bags of all these feature files in their present versions.

    A slide whose feature file no longer exists counts as current: a store is usable without the files that it was
    made from.

    Args:
        uri: the store's folder.
        slides: columns `slide_id` and `file`.
        bag_format: the format that its bags must have.

    Raises:
        InputError: there is a store, but of another format.
    """
    store = _open_existing(uri, bag_format)
    if store is None:
        return False
    stamps = _slides_with_parts(store)["file"]
    return bool(slides["slide_id"].isin(stamps.index).all()) and _count_outdated(stamps, slides) == 0


def outdated_bags(uri: str, slides: pd.DataFrame, bag_format: StoreFormat) -> int:
    """Counts the bags of a complete store whose feature files have changed since; arguments as of `is_current`."""
    store = _open_existing(uri, bag_format)
    return 0 if store is None else _count_outdated(_slides_with_parts(store)["file"], slides)


def _count_outdated(stamps: pd.Series, slides: pd.DataFrame) -> int:
    """Counts the stored slides whose feature file exists with another stamp."""
    pairs = zip(slides["slide_id"], slides["file"], strict=True)
    return sum(slide_id in stamps.index and file not in ("", stamps[slide_id]) for slide_id, file in pairs)


def ingest(
    slides: pd.DataFrame,
    uri: str,
    bag_format: StoreFormat,
    *,
    layout: Format = "auto",
    mixed_magnification: bool = False,
    part_mb: int = 128,
    on_error: OnError = "stop",
    on_progress: OnProgress | None = None,
) -> tuple[BagStore, list[Fault]]:
    """Adds the bags of all slides to the store, reading only feature files whose bags are not stored yet.

    Args:
        slides: columns `slide_id`, `patient_id`, and of the feature file `path`, `file` and `bytes`.
        uri: the store's folder, a local path or `s3://` URI.
        bag_format: precision and graph of the bags.
        layout: format of the feature files, `features.format`.
        mixed_magnification: whether slides may differ in magnification and patch size.
        part_mb: approximate size limit of a part.
        on_error: whether bad feature files end the job or are left out.
        on_progress: called with the number of slides done and their total.

    Returns:
        The store, and the faults of the slides that were left out; `rejected.csv` of the store lists them too.

    Raises:
        InputError: there are bad feature files (`rejected.csv` lists all) and `on_error` is `stop`, no feature file
            is good, or there is a store of another format.
        RunError: a part could not be written, or the storage did not recover.
    """
    uri = storage.local_path(uri) or uri
    if storage.exists(uri):
        raise InputError(f"{uri} is a file where the folder of the bag store should be; choose another store.uri")
    existing = _open_existing(uri, bag_format)
    sources, faults = _sources(slides, existing)
    entries = _stored_entries(uri, existing, sources, bag_format)
    missing = [source for source in sources if source.slide_id not in entries]
    n_done = len(slides) - len(missing)
    report = on_progress or (lambda done, total: None)
    report(n_done, len(slides))
    parts, failure = _divide_into_parts(missing, part_mb), f"the bag store {uri} could not be written"
    work = work_on_files(len(missing), sum(source.bytes for source in missing))
    for part_entries, part_faults in parallel_map(
        _write_part, parts, failure, work=work, uri=uri, bag_format=bag_format, layout=layout
    ):
        entries |= {entry["slide_id"]: entry for entry in part_entries}
        faults += part_faults
        n_done += len(part_entries) + len(part_faults)
        report(n_done, len(slides))
    faults += _faults_between(entries, slides, existing, mixed_magnification=mixed_magnification)
    rejected, total = {fault.id for fault in faults}, f"{len(slides)} feature files"
    good = {slide_id: entry for slide_id, entry in entries.items() if slide_id not in rejected}
    record_faults(faults, total, storage.join(uri, REJECTED), on_error, some_left=bool(good))
    if not good:
        raise_faults(faults, total, storage.join(uri, REJECTED))
    with_encoder = next((entry for entry in good.values() if entry["encoder"]), next(iter(good.values())))
    asked = set(slides["slide_id"])
    merge_into_manifest(uri, bag_format, with_encoder["encoder"], with_encoder["width"], good, asked)
    return BagStore.open(uri), sorted(faults)


def _faults_between(
    entries: Mapping[str, Entry], slides: pd.DataFrame, existing: BagStore | None, *, mixed_magnification: bool
) -> list[Fault]:
    """Returns the faults that show when slides are compared with each other."""
    faults = mixed_encoder_faults(entries, slides, existing)
    faults += [] if mixed_magnification else mixed_scale_faults(entries, slides, existing)
    return faults + (slide_vector_faults(entries, slides) or duplicate_content_faults(entries, slides))


def _open_existing(uri: str, bag_format: StoreFormat) -> BagStore | None:
    """Opens the store if it is complete; None if there is none yet."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        return None
    store = BagStore.open(uri)
    if store.format != bag_format:
        other = f"{uri.rstrip('/')}-{bag_format.dtype}-{bag_format.graph}{bag_format.neighbors}"
        raise InputError(
            f"the bag store {uri} holds {_describe(store.format)}, not {_describe(bag_format)}; set store.uri to "
            f"{other}, or remove that folder"
        )
    return store


def _describe(bag_format: StoreFormat) -> str:
    edges = f"{bag_format.neighbors} neighbors (features.graph {bag_format.graph})"
    return f"{bag_format.dtype} bags with {'no graph' if bag_format.graph == 'none' else edges}"


def _slides_with_parts(store: BagStore) -> pd.DataFrame:
    """Returns the slides of a store whose parts still exist."""
    return store.slides[store.slides["part"].isin(storage.list_names(store.uri))]


def _sources(slides: pd.DataFrame, existing: BagStore | None) -> tuple[list[_Source], list[Fault]]:
    """Returns the existing feature files, sorted by slide, and a fault for each slide that has neither file nor bag."""
    if slides.empty:
        raise InputError("there are no slides to read features of; check the slides table")
    duplicates = slides["slide_id"][slides["slide_id"].duplicated()]
    if len(duplicates):
        raise InputError(f"slide {duplicates.iloc[0]} is listed twice; list each slide with one feature file")
    stored = set() if existing is None else set(_slides_with_parts(existing).index)
    sources, faults = [], []
    columns = (slides[name] for name in ("slide_id", "path", "file", "bytes"))
    for slide_id, path, file, size in sorted(zip(*columns, strict=True)):
        if file:
            sources.append(_Source(slide_id, path, file, int(size)))
        elif slide_id not in stored:
            faults.append(Fault("slide", slide_id, "missing", path, str(missing_file(path))))
    return sources, faults


def _stored_entries(
    uri: str, existing: BagStore | None, sources: Sequence[_Source], bag_format: StoreFormat
) -> dict[str, Entry]:
    """Returns the entries that need no reading: of the manifest and of parts that an interrupted job has left.

    Entries whose feature file has changed are left out. Slides that were not asked for keep those of the manifest.
    """
    stamps = {source.slide_id: source.file for source in sources}
    entries: dict[str, Entry] = {}
    listed_parts: set[str] = set()
    if existing is not None:
        stored = set(_slides_with_parts(existing).index)
        listed_parts = {existing.entries[slide_id]["part"] for slide_id in stored}
        entries = {
            slide_id: entry
            for slide_id, entry in existing.entries.items()
            if slide_id in stored and stamps.get(slide_id, entry["file"]) == entry["file"]
        }
    names = storage.list_names(uri)
    unlisted_parts = [name for name in names if name.endswith(".parquet") and name not in listed_parts]
    with ThreadPoolExecutor(_FOOTER_READERS) as pool:
        for part_entries in pool.map(lambda name: _footer_entries(uri, name, bag_format), unlisted_parts):
            for entry in part_entries:
                if stamps.get(entry["slide_id"]) == entry["file"]:
                    entries.setdefault(entry["slide_id"], entry)
    return entries


def _footer_entries(uri: str, part: str, bag_format: StoreFormat) -> list[Entry]:
    """Reads the manifest entries in a part's footer; none if the file has another format or no such footer."""
    try:  # a failing disk raises `RunError`
        with open_part(uri, part) as file:
            footer = json.loads(file.metadata.metadata[_FOOTER_KEY])
            if footer["form"] != asdict(bag_format):
                return []
            return _with_offsets(footer["entries"], file.metadata)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return []


def _divide_into_parts(sources: Sequence[_Source], part_mb: int) -> list[list[_Source]]:
    """Divides slides, in order, into parts of equal size, at most about `part_mb`, and enough to occupy all CPUs."""
    if not sources:
        return []
    end_N = np.cumsum([max(1, source.bytes) for source in sources])
    n_parts = max(math.ceil(end_N[-1] / (part_mb * 2**20)), _PARTS_PER_CPU * int(total_resource("CPU")), 1)
    part_N = (end_N - 1) * n_parts // end_N[-1]
    numbered = zip(part_N.tolist(), sources, strict=True)
    return [[source for _, source in part] for _, part in groupby(numbered, key=lambda pair: pair[0])]


def _write_part(
    sources: Sequence[_Source], uri: str, bag_format: StoreFormat, layout: Format
) -> tuple[list[Entry], list[Fault]]:
    """Reads slides one at a time, builds their graphs and writes them as one part, leaving out bad ones."""
    name = _part_name(sources, bag_format)
    recipe = Recipe(bag_format.neighbors, bag_format.graph, layout)
    entries: list[Entry] = []
    faults: list[Fault] = []
    metadata: list[pq.FileMetaData] = []
    with ExitStack() as open_files:
        writer = None
        for source in sources:
            try:
                bag = read_bag(source.path, source.slide_id, recipe, dtype=bag_format.dtype)
                row = to_row(bag)
            except FileFaultError as error:
                faults.append(Fault("slide", source.slide_id, error.problem, source.path, str(error)))
                continue
            if writer is None:  # a part without a good slide is not written
                stream = open_files.enter_context(storage.atomic_writer(storage.join(uri, name)))
                writer = open_files.enter_context(
                    pq.ParquetWriter(stream, SCHEMA, metadata_collector=metadata, **WRITER_OPTIONS)
                )
            writer.write_table(rows_table([row]))
            entries.append(_entry(source, bag, name, row))
            del bag, row  # frees the bag before the next one is read
        if writer is not None:
            footer = {"form": asdict(bag_format), "entries": entries}
            writer.add_key_value_metadata({_FOOTER_KEY: json.dumps(footer).encode()})
    return _with_offsets(entries, metadata[0]) if metadata else [], faults


def _entry(source: _Source, bag: Bag, part: str, row: Row) -> Entry:
    scale = patch_scale(bag.provenance)
    return {
        "slide_id": source.slide_id,
        "part": part,
        "n_patches": bag.n_patches,
        "width": bag.width,
        "encoder": bag.provenance.get("encoder"),
        "format": bag.provenance["format"],
        "magnification": scale.magnification,
        "patch_px": scale.patch_px,
        "sha256": row["sha256"],
        "file": source.file,
        "sizes": buffer_sizes(row),
    }


def _with_offsets(entries: Sequence[Entry], part: pq.FileMetaData) -> list[Entry]:
    """Replaces the buffers' sizes by their offsets in the part, which only the finished part tells."""
    complete = []
    for row_group, entry in enumerate(entries):
        rest = dict(entry)
        sizes = rest.pop("sizes")
        complete.append(rest | {"at": buffer_offsets(part, row_group, sizes)})
    return complete


def _part_name(sources: Sequence[_Source], bag_format: StoreFormat) -> str:
    identity = [asdict(bag_format), [(source.slide_id, source.file) for source in sources]]
    return f"part-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.parquet"
