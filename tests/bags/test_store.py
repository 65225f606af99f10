"""A store holds every bag exactly, and a damaged part is named."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import parquet as pq
from support.bags import (
    EXACT,
    WIDTH,
    assert_same_bag,
    make_bag,
    stored,
)

from momkd_ray.bags.bag_rows import SCHEMA, from_row, row_at, rows_table, to_row
from momkd_ray.bags.store import BagStore
from momkd_ray.errors import InputError


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_a_row_holds_the_bag_exactly(dtype: str, n: int) -> None:
    bag = make_bag(n, dtype)
    table = rows_table([to_row(make_bag(3, dtype, 8)), to_row(bag), to_row(make_bag(5, dtype, 9))])
    assert table.schema.equals(SCHEMA)
    assert_same_bag(from_row(to_row(bag)), bag)
    assert_same_bag(from_row(row_at(table, 1)), bag)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 99}'])
def test_only_a_whole_manifest_of_this_version_opens(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="no complete bag store"):
        BagStore.open(str(tmp_path))
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        BagStore.open(str(tmp_path))


def test_any_parquet_reader_reads_the_store(tmp_path: Path, slides: pd.DataFrame) -> None:
    store = stored(slides, str(tmp_path / "store"))
    for part in set(store.slides["part"]):
        table = pq.read_table(tmp_path / "store" / part)
        assert table.schema.equals(SCHEMA)
        assert pq.read_metadata(tmp_path / "store" / part).num_row_groups == table.num_rows
        for row in table.to_pylist():
            assert_same_bag(from_row(row), store.read(row["slide_id"]))


def test_a_store_is_read_by_threads_and_survives_pickling(tmp_path: Path, slides: pd.DataFrame) -> None:
    store = stored(slides, str(tmp_path / "store"), EXACT)
    ids = list(slides["slide_id"])
    alone = [store.read(slide_id) for slide_id in ids]
    twin = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(4) as pool:
        for bag, expected in zip(pool.map(twin.read, ids * 20), alone * 20, strict=True):
            assert_same_bag(bag, expected)


def test_a_damaged_part_is_named_with_its_slide(tmp_path: Path, slides: pd.DataFrame) -> None:
    store = stored(slides, str(tmp_path / "store"), EXACT)
    part = tmp_path / "store" / store.slides.loc["s11", "part"]
    content = bytearray(part.read_bytes())
    at = content.index(store.read("s11").features.tobytes())
    content[at + 3] ^= 1
    part.write_bytes(content)
    for spoil in (lambda: None, lambda: part.write_bytes(content[: at + 9]), part.unlink):
        spoil()
        with pytest.raises(InputError, match=rf"{part.name} .*s11"):
            pickle.loads(pickle.dumps(store)).read("s11")


def test_the_manifest_says_what_the_store_holds(tmp_path: Path, slides: pd.DataFrame) -> None:
    stored(slides, str(tmp_path / "store"))
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert (manifest["schema_version"], manifest["width"], manifest["encoder"]) == (2, WIDTH, None)
    assert (manifest["n_slides"], manifest["n_patches"]) == (12, sum(1 + 3 * i for i in range(12)))
    assert manifest["parts"] == sorted(path.name for path in (tmp_path / "store").glob("*.parquet"))
    assert all(len(slide["sha256"]) == 64 for slide in manifest["slides"])
