"""A bag store of given bags, written without ingesting feature files."""

from __future__ import annotations

from collections.abc import Sequence

from pyarrow import parquet as pq

from momkd_ray import storage
from momkd_ray.bags.bag_rows import SCHEMA, WRITER_OPTIONS, buffer_offsets, buffer_sizes, rows_table, to_row
from momkd_ray.bags.store import BagStore, StoreFormat, merge_into_manifest
from momkd_ray.formats.bag import Bag


def write_store(uri: str, bags: Sequence[Bag], *, bags_a_part: int = 4) -> BagStore:
    """Writes the bags, which have one dtype and width, a few to a part."""
    form = StoreFormat(bags[0].features.dtype.name, 4, "knn")  # type: ignore[arg-type]
    entries = {}
    for first in range(0, len(bags), bags_a_part):
        part, metadata = f"part-{first:04d}.parquet", []
        rows = [to_row(bag) for bag in bags[first : first + bags_a_part]]
        with (
            storage.atomic_writer(storage.join(uri, part)) as stream,
            pq.ParquetWriter(stream, SCHEMA, metadata_collector=metadata, **WRITER_OPTIONS) as writer,
        ):
            for row in rows:
                writer.write_table(rows_table([row]))
        for group, row in enumerate(rows):
            entries[row["slide_id"]] = {
                "slide_id": row["slide_id"],
                "part": part,
                "n_patches": row["n_patches"],
                "width": row["width"],
                "encoder": None,
                "sha256": row["sha256"],
                "file": "made",
                "at": buffer_offsets(metadata[0], group, buffer_sizes(row)),
            }
    merge_into_manifest(uri, form, None, bags[0].width, entries, entries)
    return BagStore.open(uri)
