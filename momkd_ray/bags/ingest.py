"""Feature files to the bag store, as a Ray Data job: one row of it is one part of the store.

A part carries in its footer which feature files it was made from, so a job that was cut short, or is given
more slides, keeps every bag that is already there, whatever the cut into parts. The manifest is written last.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import fs
from pyarrow import parquet as pq

from momkd_ray import storage
from momkd_ray.bags.arrays import Precision
from momkd_ray.bags.readers import Bag, Recipe, header_of, read_bag
from momkd_ray.bags.store import (
    MANIFEST,
    SCHEMA,
    SCHEMA_VERSION,
    WRITER_OPTIONS,
    BagStore,
    bags_table,
    open_part,
)
from momkd_ray.errors import InputError, RunError

REJECTED = "rejected.csv"

Progress = Callable[[int, int], None]
Fault = dict[str, str]  # slide_id, path, reason
Entry = dict[str, Any]  # a slide in the manifest

_FOOTER_KEY = b"momkd_ray.part"
_PARTS_PER_CPU = 4  # so that no CPU idles long at the end, and progress is seen


@dataclass(frozen=True)
class _Source:
    """A feature file, as planned."""

    slide_id: str
    path: str
    file: str  # size and time of change: other figures, other features
    n_patches: int
    width: int


@dataclass(frozen=True)
class _Form:
    """What all bags of one store have in common."""

    dtype: Precision
    neighbors: int
    width: int
    schema_version: int = SCHEMA_VERSION


def feature_faults(slides: pd.DataFrame, recipe: Recipe) -> list[Fault]:
    """What the headers of the feature files show to be wrong: `slide_id`, `path`, `reason` of each bad file.

    Args:
        slides: columns `slide_id` and `path`.
        recipe: how they would become bags.
    """
    return _survey(slides, recipe)[1]


def covers(uri: str, slides: pd.DataFrame, dtype: str, neighbors: int) -> bool:
    """Whether a finished store holds the bags of all these feature files, as the files are now.

    A slide whose file is gone counts as held: a store can be used without the files it was made from.

    Args:
        slides: columns `slide_id` and `path`.

    Raises:
        InputError: a store is there, but of another precision or another number of neighbours.
    """
    store = _finished(uri, dtype, neighbors)
    if store is None:
        return False
    held = _present(store)["file"]
    if not slides["slide_id"].isin(held.index).all():
        return False
    now = [_file_figures(_absolute(str(path))) for path in slides["path"]]
    return all(figures in ("", held[slide]) for slide, figures in zip(slides["slide_id"], now, strict=True))


def ingest(
    slides: pd.DataFrame,
    uri: str,
    dtype: Precision,
    neighbors: int,
    part_mb: int,
    on_progress: Progress | None = None,
) -> BagStore:
    """Bring the bags of all slides into the store, reading only feature files whose bags are not yet there.

    Args:
        slides: columns `slide_id` and `path`.
        uri: the store's folder, a local path or `s3://` URI.
        dtype: `float16` or `float32`.
        neighbors: k of the graphs.
        part_mb: about how large a part may become.
        on_progress: called with the slides done and their total.

    Raises:
        InputError: feature files are bad (all are listed in `rejected.csv` in the store's folder), or a store
            of another form is there.
        RunError: a part could not be written.
    """
    uri = _absolute(uri)
    if storage.exists(uri):
        raise InputError(f"{uri} is a file where the folder of the bag store should be; choose another store.uri")
    old = _finished(uri, dtype, neighbors)
    sources, faults = _survey(slides, Recipe(neighbors), expected_width=None if old is None else old.width)
    if faults:
        raise _refusal(faults, len(slides), uri)
    form = _Form(dtype, neighbors, sources[0].width)
    entries = _kept(uri, old, sources, form)
    missing = [source for source in sources if source.slide_id not in entries]
    done = len(sources) - len(missing)
    if on_progress is not None:
        on_progress(done, len(sources))
    for result in _written_parts(_plan(missing, form, part_mb), uri, form):
        entries |= {entry["slide_id"]: entry for entry in result["entries"]}
        faults += result["faults"]
        done += len(result["entries"]) + len(result["faults"])
        if on_progress is not None:
            on_progress(done, len(sources))
    if faults:
        raise _refusal(faults, len(slides), uri)
    _finish(uri, form, entries)
    return BagStore.open(uri)


def _absolute(location: str) -> str:
    return location if "://" in location else storage.filesystem(location)[1]


def _finished(uri: str, dtype: str, neighbors: int) -> BagStore | None:
    if not storage.exists(storage.join(uri, MANIFEST)):
        return None
    store = BagStore.open(uri)
    if (store.dtype, store.neighbors) != (dtype, neighbors):
        raise InputError(
            f"the bag store {uri} holds {store.dtype} bags with {store.neighbors} neighbors, not {dtype} "
            f"with {neighbors}; choose another store.uri or remove that folder"
        )
    return store


def _present(store: BagStore) -> pd.DataFrame:
    """The slides of a store whose parts are still there."""
    return store.slides[store.slides["part"].isin(storage.names_below(store.uri))]


def _survey(
    slides: pd.DataFrame, recipe: Recipe, expected_width: int | None = None
) -> tuple[list[_Source], list[Fault]]:
    """The usable feature files sorted by slide, and the faults of the others."""
    if slides.empty:
        raise InputError("there are no slides to read features of; check the slides table")
    twice = slides["slide_id"][slides["slide_id"].duplicated()]
    if len(twice):
        raise InputError(f"slide {twice.iloc[0]} is listed twice; list each slide with one feature file")
    sources: list[_Source] = []
    faults: list[Fault] = []
    for slide_id, path in sorted(zip(slides["slide_id"], slides["path"], strict=True)):
        try:
            sources.append(_source(slide_id, _absolute(str(path)), recipe, expected_width))
        except InputError as error:
            faults.append({"slide_id": slide_id, "path": str(path), "reason": str(error)})
    return _of_one_width(sources, faults)


def _source(slide_id: str, path: str, recipe: Recipe, expected_width: int | None) -> _Source:
    header = header_of(path, recipe, expected_width)
    return _Source(slide_id, path, _file_figures(path), header.n_patches, header.width)


def _file_figures(path: str) -> str:
    """Size and time of change of a file; '' where there is none."""
    system, inner = storage.filesystem(path)
    info = system.get_file_info(inner)
    return f"{info.size}-{info.mtime_ns}" if info.type == fs.FileType.File else ""


def _of_one_width(sources: list[_Source], faults: list[Fault]) -> tuple[list[_Source], list[Fault]]:
    """The sources of the most frequent width; the others are faults that name two files and two widths."""
    if not sources:
        return sources, faults
    width = Counter(source.width for source in sources).most_common(1)[0][0]
    model = next(source for source in sources if source.width == width)
    for odd in sources:
        if odd.width != width:
            reason = (
                f"{odd.path} has features of width {odd.width}, but {model.path} and most others of width "
                f"{width}; extract all slides with one encoder"
            )
            faults.append({"slide_id": odd.slide_id, "path": odd.path, "reason": reason})
    return [source for source in sources if source.width == width], faults


def _tally(faults: Sequence[Fault], total: int) -> str:
    return f"{len(faults)} of {total} feature files cannot be used, first: {faults[0]['reason']}"


def _refusal(faults: list[Fault], total: int, uri: str) -> InputError:
    location = storage.join(uri, REJECTED)
    faults = sorted(faults, key=lambda fault: fault["slide_id"])
    storage.write_text(location, pd.DataFrame(faults).to_csv(index=False))
    return InputError(f"{_tally(faults, total)}; all are listed in {location}")


def _kept(uri: str, old: BagStore | None, sources: Sequence[_Source], form: _Form) -> dict[str, Entry]:
    """What is already stored: a finished store's slides, unless their files have changed, and wanted bags in
    parts that an unfinished job has left.
    """
    file_of = {source.slide_id: source.file for source in sources}
    entries: dict[str, Entry] = {}
    listed: set[str] = set()
    if old is not None:
        present = _present(old)
        listed = set(present["part"])
        rows = cast(list[Entry], present.reset_index().to_dict("records"))
        entries = {row["slide_id"]: row for row in rows if file_of.get(row["slide_id"], row["file"]) == row["file"]}
    left = [name for name in storage.names_below(uri) if name.endswith(".parquet") and name not in listed]
    with ThreadPoolExecutor(16) as pool:
        for part_entries in pool.map(lambda name: _footer_entries(uri, name, form), left):
            for entry in part_entries:
                if file_of.get(entry["slide_id"]) == entry["file"]:
                    entries.setdefault(entry["slide_id"], entry)
    return entries


def _footer_entries(uri: str, part: str, form: _Form) -> list[Entry]:
    """The manifest entries of a part, from its footer; none if it is of another form or not ours."""
    try:
        footer = json.loads(open_part(uri, part).metadata.metadata[_FOOTER_KEY])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return []
    entries: list[Entry] = footer["entries"] if footer["form"] == asdict(form) else []
    return entries


def _plan(missing: Sequence[_Source], form: _Form, part_mb: int) -> list[list[_Source]]:
    """Cut slides, in order, into even parts of about `part_mb` at most, and enough to keep all CPUs busy."""
    import ray

    if not missing:
        return []
    cpus = int(ray.cluster_resources().get("CPU", 1))
    per_patch = form.width * np.dtype(form.dtype).itemsize + 8 + 4 * (form.neighbors + 1)
    end_N = np.cumsum([source.n_patches for source in missing])
    n_parts = max(math.ceil(end_N[-1] * per_patch / (part_mb * 2**20)), _PARTS_PER_CPU * cpus)
    part_N = (end_N - 1) * n_parts // end_N[-1]
    numbered = zip(part_N.tolist(), missing, strict=True)
    return [[source for _, source in part] for _, part in groupby(numbered, key=lambda pair: pair[0])]


def _written_parts(plan: Sequence[Sequence[_Source]], uri: str, form: _Form) -> Iterator[dict[str, Any]]:
    """Write the parts on all nodes; yields the entries and faults of each as it is done."""
    import ray

    if not plan:
        return
    rows = [{"part": json.dumps([asdict(source) for source in part])} for part in plan]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _write_part, fn_kwargs={"uri": uri, "form": form}, num_cpus=1
    )
    try:
        for row in dataset.iter_rows():
            yield json.loads(row["result"])
    except (ray.exceptions.RayError, OSError) as error:
        cause = str(error).strip().splitlines()[-1]
        raise RunError(f"the bag store {uri} could not be written: {cause}") from error


def _write_part(row: Mapping[str, str], uri: str, form: _Form) -> dict[str, str]:
    """One task: read, connect and store a part's slides one at a time, leaving out those that are bad."""
    sources = [_Source(**fields) for fields in json.loads(row["part"])]
    name = _part_name(sources, form)
    entries: list[Entry] = []
    faults: list[Fault] = []
    bags = _bags(sources, form, faults)
    first = next(bags, None)
    if first is not None:
        with (
            storage.writing(storage.join(uri, name)) as stream,
            pq.ParquetWriter(stream, SCHEMA, **WRITER_OPTIONS) as writer,
        ):
            for source, bag in chain([first], bags):
                table = bags_table([bag])
                writer.write_table(table)
                entries.append(
                    {
                        "slide_id": source.slide_id,
                        "part": name,
                        "row_group": len(entries),
                        "n_patches": bag.n_patches,
                        "sha256": table.column("sha256")[0].as_py(),
                        "file": source.file,
                    }
                )
            footer = {"form": asdict(form), "entries": entries}
            writer.add_key_value_metadata({_FOOTER_KEY: json.dumps(footer).encode()})
    return {"result": json.dumps({"entries": entries, "faults": faults})}


def _part_name(sources: Sequence[_Source], form: _Form) -> str:
    identity = [asdict(form), [(source.slide_id, source.file) for source in sources]]
    return f"part-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.parquet"


def _bags(sources: Sequence[_Source], form: _Form, faults: list[Fault]) -> Iterator[tuple[_Source, Bag]]:
    """The bags at the store's precision; those that cannot be had are added to `faults`."""
    for source in sources:
        try:
            bag = read_bag(source.path, source.slide_id, Recipe(form.neighbors), form.width, form.dtype)
        except InputError as error:
            faults.append({"slide_id": source.slide_id, "path": source.path, "reason": str(error)})
        else:
            yield source, bag


def _finish(uri: str, form: _Form, entries: Mapping[str, Entry]) -> None:
    slides = [entries[slide_id] for slide_id in sorted(entries)]
    manifest = asdict(form) | {
        "n_slides": len(slides),
        "n_patches": sum(entry["n_patches"] for entry in slides),
        "parts": sorted({entry["part"] for entry in slides}),
        "slides": slides,
    }
    storage.write_json(storage.join(uri, MANIFEST), manifest)
    rejected = storage.join(uri, REJECTED)
    if storage.exists(rejected):
        system, path = storage.filesystem(rejected)
        system.delete_file(path)
