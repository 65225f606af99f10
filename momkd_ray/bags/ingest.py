"""Feature files to the bag store, as a Ray Data job: one row of it is one part of the store.

A part carries in its footer which feature files it was made from, so a job that was cut short, or is given
more slides, keeps every bag that is already there, whatever the cut into parts. The manifest is written last.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet as pq

from momkd_ray import storage
from momkd_ray.bags.consistency import duplicate_content_faults, mixed_encoder_faults
from momkd_ray.bags.store import (
    MANIFEST,
    SCHEMA,
    WRITER_OPTIONS,
    BagStore,
    Entry,
    StoreFormat,
    bags_table,
    buffer_offsets,
    buffer_sizes,
    open_part,
    write_manifest,
)
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag, Format, Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import REJECTED, Fault, FileFaultError, OnError, raise_faults, record_faults
from momkd_ray.ray_runtime.cluster import total_resource
from momkd_ray.ray_runtime.parallel_map import parallel_map

Progress = Callable[[int, int], None]

_FOOTER_KEY = b"momkd_ray.part"
_PARTS_PER_CPU = 8  # so that no CPU idles long at the end, and progress is seen


@dataclass(frozen=True)
class _Source:
    """A feature file, as listed."""

    slide_id: str
    path: str
    file: str  # size and time of change, on S3 size and ETag: another stamp, other features
    bytes: int


def store_format(config: Config) -> StoreFormat:
    """The form of the store that a configuration asks for."""
    store, graph = config.store, config.features.graph
    return StoreFormat(store.dtype, 0 if graph == "none" else store.neighbors, graph)


def is_current(uri: str, slides: pd.DataFrame, form: StoreFormat) -> bool:
    """Whether a finished store holds the bags of all these feature files, as the files are now.

    A slide whose file is gone counts as held: a store can be used without the files it was made from.

    Args:
        uri: the store's folder.
        slides: columns `slide_id` and `file`.
        form: the form its bags must have.

    Raises:
        InputError: a store is there, but of another form.
    """
    store = _finished(uri, form)
    if store is None:
        return False
    held = _present(store)["file"]
    if not slides["slide_id"].isin(held.index).all():
        return False
    return _changed(held, slides) == 0


def outdated_bags(uri: str, slides: pd.DataFrame, form: StoreFormat) -> int:
    """How many bags of a finished store were made of other files than these slides have now; see `covers`."""
    store = _finished(uri, form)
    return 0 if store is None else _changed(_present(store)["file"], slides)


def _changed(held: pd.Series, slides: pd.DataFrame) -> int:
    """How many of the slides whose bags are held have another file now; one whose file is gone has not."""
    pairs = zip(slides["slide_id"], slides["file"], strict=True)
    return sum(slide_id in held.index and file not in ("", held[slide_id]) for slide_id, file in pairs)


def ingest(
    slides: pd.DataFrame,
    uri: str,
    form: StoreFormat,
    *,
    layout: Format = "auto",
    part_mb: int = 128,
    on_error: OnError = "stop",
    on_progress: Progress | None = None,
) -> tuple[BagStore, list[Fault]]:
    """Bring the bags of all slides into the store, reading only feature files whose bags are not yet there.

    Args:
        slides: columns `slide_id`, `patient_id`, and of the feature file `path`, `file` and `bytes`.
        uri: the store's folder, a local path or `s3://` URI.
        form: precision and graph of the bags.
        layout: of the feature files, `features.format`.
        part_mb: about how large a part may become.
        on_error: whether bad feature files end the job, or are left out.
        on_progress: called with the slides done and their total.

    Returns:
        The store, and the faults of the slides that were left out; they are listed in `rejected.csv` of the store.

    Raises:
        InputError: feature files are bad (all are listed in `rejected.csv` of the store) and `on_error` is `stop`,
            none is good, or a store of another form is there.
        RunError: a part could not be written, or storage stayed away.
    """
    uri = storage.absolute(uri)
    if storage.exists(uri):
        raise InputError(f"{uri} is a file where the folder of the bag store should be; choose another store.uri")
    old = _finished(uri, form)
    sources, faults = _sources(slides, old)
    entries = _kept(uri, old, sources, form)
    missing = [source for source in sources if source.slide_id not in entries]
    done = len(slides) - len(missing)
    told = on_progress or (lambda done, total: None)
    told(done, len(slides))
    plan = _plan(missing, part_mb)
    what = f"the bag store {uri} could not be written"
    for written, part_faults in parallel_map(_write_part, plan, what, uri=uri, form=form, layout=layout):
        entries |= {entry["slide_id"]: entry for entry in written}
        faults += part_faults
        done += len(written) + len(part_faults)
        told(done, len(slides))
    faults += mixed_encoder_faults(entries, slides, old) + duplicate_content_faults(entries, slides)
    record_faults(faults, f"{len(slides)} feature files", storage.join(uri, REJECTED), on_error)
    rejected = {fault.id for fault in faults}
    good = {slide_id: entry for slide_id, entry in entries.items() if slide_id not in rejected}
    if not good:
        raise_faults(faults, f"{len(slides)} feature files", storage.join(uri, REJECTED))
    first = next((e for e in good.values() if e["encoder"]), next(iter(good.values())))
    write_manifest(uri, form, first["encoder"], first["width"], good)
    return BagStore.open(uri), sorted(faults)


def _finished(uri: str, form: StoreFormat) -> BagStore | None:
    if not storage.exists(storage.join(uri, MANIFEST)):
        return None
    store = BagStore.open(uri)
    if store.form != form:
        raise InputError(
            f"the bag store {uri} holds {_form_words(store.form)}, not {_form_words(form)}; choose another store.uri "
            "or remove that folder"
        )
    return store


def _form_words(form: StoreFormat) -> str:
    graph = "no graph" if form.graph == "none" else f"{form.neighbors} neighbors (features.graph {form.graph})"
    return f"{form.dtype} bags with {graph}"


def _present(store: BagStore) -> pd.DataFrame:
    """The slides of a store whose parts are still there."""
    return store.slides[store.slides["part"].isin(storage.list_names(store.uri))]


def _sources(slides: pd.DataFrame, old: BagStore | None) -> tuple[list[_Source], list[Fault]]:
    """The feature files to have in the store, sorted by slide, and the faults of those that are not there."""
    if slides.empty:
        raise InputError("there are no slides to read features of; check the slides table")
    twice = slides["slide_id"][slides["slide_id"].duplicated()]
    if len(twice):
        raise InputError(f"slide {twice.iloc[0]} is listed twice; list each slide with one feature file")
    held = set() if old is None else set(_present(old).index)
    sources, faults = [], []
    columns = (slides[name] for name in ("slide_id", "path", "file", "bytes"))
    for slide_id, path, file, size in sorted(zip(*columns, strict=True)):
        if file:
            sources.append(_Source(slide_id, path, file, int(size)))
        elif slide_id not in held:
            reason = f"there is no feature file {path}; extract it or leave the slide out"
            faults.append(Fault("slide", slide_id, "missing", path, reason))
    return sources, faults


def _kept(uri: str, old: BagStore | None, sources: Sequence[_Source], form: StoreFormat) -> dict[str, Entry]:
    """What is already stored: a finished store's slides, unless their files have changed, and wanted bags in
    parts that an unfinished job has left.
    """
    file_of = {source.slide_id: source.file for source in sources}
    entries: dict[str, Entry] = {}
    listed: set[str] = set()
    if old is not None:
        present = set(_present(old).index)
        listed = {old.entries[slide_id]["part"] for slide_id in present}
        entries = {
            slide_id: entry
            for slide_id, entry in old.entries.items()
            if slide_id in present and file_of.get(slide_id, entry["file"]) == entry["file"]
        }
    left = [name for name in storage.list_names(uri) if name.endswith(".parquet") and name not in listed]
    with ThreadPoolExecutor(16) as pool:
        for part_entries in pool.map(lambda name: _footer_entries(uri, name, form), left):
            for entry in part_entries:
                if file_of.get(entry["slide_id"]) == entry["file"]:
                    entries.setdefault(entry["slide_id"], entry)
    return entries


def _footer_entries(uri: str, part: str, form: StoreFormat) -> list[Entry]:
    """The manifest entries of a part, from its footer; none if it is of another form or not ours."""
    try:
        with open_part(uri, part) as file:
            footer = json.loads(file.metadata.metadata[_FOOTER_KEY])
            return _placed(footer["entries"], file.metadata) if footer["form"] == asdict(form) else []
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return []


def _plan(missing: Sequence[_Source], part_mb: int) -> list[list[_Source]]:
    """Cut slides, in order, into even parts of about `part_mb` at most, and enough to keep all CPUs busy."""
    if not missing:
        return []
    end_N = np.cumsum([max(1, source.bytes) for source in missing])
    n_parts = max(math.ceil(end_N[-1] / (part_mb * 2**20)), _PARTS_PER_CPU * int(total_resource("CPU")), 1)
    part_N = (end_N - 1) * n_parts // end_N[-1]
    numbered = zip(part_N.tolist(), missing, strict=True)
    return [[source for _, source in part] for _, part in groupby(numbered, key=lambda pair: pair[0])]


def _write_part(
    sources: Sequence[_Source], uri: str, form: StoreFormat, layout: Format
) -> tuple[list[Entry], list[Fault]]:
    """Read, connect and store a part's slides one at a time, leaving out those that are bad."""
    name, recipe = _part_name(sources, form), Recipe(form.neighbors, form.graph, layout)
    entries: list[Entry] = []
    faults: list[Fault] = []
    metadata: list[pq.FileMetaData] = []
    with ExitStack() as open_files:
        writer = None
        for source in sources:
            try:
                bag = read_bag(source.path, source.slide_id, recipe, dtype=form.dtype)
                table = bags_table([bag])
            except FileFaultError as error:
                faults.append(Fault("slide", source.slide_id, error.problem, source.path, str(error)))
                continue
            if writer is None:
                stream = open_files.enter_context(storage.atomic_writer(storage.join(uri, name)))
                writer = open_files.enter_context(
                    pq.ParquetWriter(stream, SCHEMA, metadata_collector=metadata, **WRITER_OPTIONS)
                )
            writer.write_table(table)
            entries.append(_entry(source, bag, name, table))
            del bag, table  # or two of the largest bags would be in memory at a time
        if writer is not None:
            footer = {"form": asdict(form), "entries": entries}
            writer.add_key_value_metadata({_FOOTER_KEY: json.dumps(footer).encode()})
    if metadata:
        entries = _placed(entries, metadata[0])
    return entries, faults


def _entry(source: _Source, bag: Bag, part: str, table: pa.Table) -> Entry:
    return {
        "slide_id": source.slide_id,
        "part": part,
        "n_patches": bag.n_patches,
        "width": bag.width,
        "encoder": bag.provenance.get("encoder"),
        "sha256": table.column("sha256")[0].as_py(),
        "file": source.file,
        "sizes": buffer_sizes(table),
    }


def _placed(entries: Sequence[Entry], part: pq.FileMetaData) -> list[Entry]:
    """Entries with where in the part their buffers lie, which only the finished part tells."""
    placed = []
    for row_group, entry in enumerate(entries):
        rest = dict(entry)
        sizes = rest.pop("sizes")
        placed.append(rest | {"at": buffer_offsets(part, row_group, sizes)})
    return placed


def _part_name(sources: Sequence[_Source], form: StoreFormat) -> str:
    identity = [asdict(form), [(source.slide_id, source.file) for source in sources]]
    return f"part-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.parquet"
