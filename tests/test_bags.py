"""Feature files -> bags -> store: nothing is lost, nothing is invented, and bad files are named."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq
from sklearn.neighbors import NearestNeighbors

from momkd_ray.bags.graph import knn_graph
from momkd_ray.bags.ingest import covers, feature_faults, ingest
from momkd_ray.bags.readers import Bag, Recipe, read_bag
from momkd_ray.bags.store import SCHEMA, BagStore, bags_table, from_row, row_at, to_row
from momkd_ray.bags.stream import SharedBags, share_bags
from momkd_ray.cluster import Connection
from momkd_ray.errors import InputError

WIDTH = 6


def grid(n: int) -> np.ndarray:
    return np.stack(np.divmod(np.arange(n), int(np.ceil(np.sqrt(n)))), 1) * 256


def write_h5(path: Path, n: int = 9, width: int = WIDTH, seed: int = 0, **changes: Any) -> Path:
    """A TRIDENT file; `changes` replace a dataset, or leave it out where None."""
    features = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    data = {"features": features, "coords": grid(n)} | changes
    with h5py.File(path, "w") as file:
        for name in data:
            if data[name] is not None:
                file[name] = data[name]
                file[name].attrs["patch_size_level0"] = 256
    return path


def features_in(path: str) -> np.ndarray:
    return read_bag(path, "slide", Recipe()).features


def make_bag(n: int = 12, dtype: str = "float16", seed: int = 0) -> Bag:
    features = np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(dtype)
    coords = grid(n).astype(np.int32)
    return Bag(f"slide-{seed}", features, coords, *knn_graph(coords, 4), {"encoder": "uni"})


def assert_same_bag(a: Bag, b: Bag) -> None:
    assert (a.slide_id, a.provenance) == (b.slide_id, b.provenance)
    for name in ("features", "coords", "edge_indptr", "edge_indices"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


def rows_of(coords: np.ndarray, k: int) -> np.ndarray:
    indptr, indices = knn_graph(coords, k)
    assert indptr.dtype == indices.dtype == np.int32
    degree = min(k, len(coords) - 1)
    np.testing.assert_array_equal(indptr, np.arange(len(coords) + 1) * degree)
    return indices.reshape(len(coords), degree)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=1, max_size=60), st.integers(1, 9))
def test_graph_is_the_brute_force_one(points: list[tuple[int, int]], k: int) -> None:
    """Also with repeated places: nearest first, ties by x, then y, then index."""
    coords = np.array(points)
    squared = ((coords[:, None] - coords[None]) ** 2).sum(-1)
    expected = [
        sorted((j for j in range(len(coords)) if j != i), key=lambda j: (squared[i, j], *points[j], j))[:k]
        for i in range(len(coords))
    ]
    assert rows_of(coords, k).tolist() == expected


@settings(max_examples=80, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=60), st.randoms())
def test_graph_does_not_depend_on_patch_order(points: set[tuple[int, int]], random: Any) -> None:
    coords = np.array(sorted(points)) * 256
    order = np.array(random.sample(range(len(coords)), len(coords)))
    np.testing.assert_array_equal(order[rows_of(coords[order], 8)], rows_of(coords, 8)[order])


def test_graph_distances_agree_with_scikit_learn() -> None:
    coords = np.random.default_rng(3).permutation(grid(3000))[:2000]
    rows = rows_of(coords, 8)
    found = np.sqrt(((coords[rows] - coords[:, None]) ** 2).sum(-1))
    expected, _ = NearestNeighbors(n_neighbors=8).fit(coords).kneighbors()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_graph_is_exact_where_many_tie_and_squares_exceed_double_precision() -> None:
    circle = [(x, y) for x in range(-33, 34) for y in range(-33, 34) if x * x + y * y == 1105]
    assert rows_of(np.array([*circle, (0, 0)]), 3)[-1].tolist() == [0, 1, 2]
    coords = np.array([[0, 0], [2**30, -2], [2**30, 0], [2**30, -1]])
    assert rows_of(coords, 3)[0].tolist() == [2, 3, 1]


def with_value(value: float) -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(9, WIDTH)).astype("f4")
    features[[4, 7], 2] = value
    return features


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n", [1, 2, 30])
def test_a_row_holds_the_bag_exactly(dtype: str, n: int) -> None:
    bag = make_bag(n, dtype)
    table = bags_table([make_bag(3, dtype, 8), bag, make_bag(5, dtype, 9)])
    assert table.schema.equals(SCHEMA)
    assert_same_bag(from_row(to_row(bag)), bag)
    assert_same_bag(from_row(row_at(table, 1)), bag)
    placeless = replace(bag, coords=None)
    assert from_row(to_row(placeless)).coords is None
    assert from_row(row_at(bags_table([placeless]), 0)).coords is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 99}'])
def test_only_a_whole_manifest_of_this_version_opens(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="no finished bag store"):
        BagStore.open(str(tmp_path))
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        BagStore.open(str(tmp_path))


@pytest.fixture
def slides(tmp_path: Path, ray_cluster: Connection) -> pd.DataFrame:
    """Twelve slides of 1 to 34 patches, one of them in the (1, P, D) layout."""
    paths = [write_h5(tmp_path / f"s{i:02d}.h5", n=1 + 3 * i, seed=i) for i in range(12)]
    features = np.random.default_rng(99).normal(size=(1, 7, WIDTH)).astype("f4")
    write_h5(paths[2], n=7, features=features)
    return pd.DataFrame({"slide_id": [path.stem for path in paths], "path": map(str, paths)})


def times(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.glob("*.parquet")}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_ingest_stores_every_bag_exactly(tmp_path: Path, slides: pd.DataFrame, dtype: str) -> None:
    seen: list[tuple[int, int]] = []
    shuffled, uri = slides.sample(frac=1, random_state=0), str(tmp_path / "store")
    store = ingest(shuffled, uri, dtype, 4, 1, lambda *progress: seen.append(progress))
    assert (store.width, store.dtype, store.neighbors) == (WIDTH, dtype, 4)
    assert list(store.slides.index) == list(slides["slide_id"])
    assert seen == sorted(seen)
    assert seen[-1] == (12, 12)
    for slide_id, path in slides.itertuples(index=False):
        bag = read_bag(path, slide_id, Recipe(4))
        expected = replace(bag, features=bag.features.astype(dtype))
        assert_same_bag(store.read(slide_id, verify=True), expected)
        assert store.slides.loc[slide_id, "n_patches"] == bag.n_patches
    for part in set(store.slides["part"]):
        metadata = pq.read_metadata(tmp_path / "store" / part)
        assert metadata.num_row_groups == metadata.num_rows
    with pytest.raises(InputError, match="no slide s99"):
        store.read("s99")


def test_a_store_is_read_by_threads_and_survives_pickling(tmp_path: Path, slides: pd.DataFrame) -> None:
    store = ingest(slides, str(tmp_path / "store"), "float32", 8, 1)
    ids = list(slides["slide_id"])
    alone = [store.read(slide_id) for slide_id in ids]
    twin = pickle.loads(pickle.dumps(store))
    with ThreadPoolExecutor(4) as pool:
        for bag, expected in zip(pool.map(twin.read, ids * 20), alone * 20, strict=True):
            assert_same_bag(bag, expected)


def test_a_damaged_part_is_named_with_its_slide(tmp_path: Path, slides: pd.DataFrame) -> None:
    store = ingest(slides, str(tmp_path / "store"), "float32", 8, 1)
    part = tmp_path / "store" / store.slides.loc["s11", "part"]
    content = bytearray(part.read_bytes())
    at = content.index(store.read("s11").features.tobytes())
    content[at + 3] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match=rf"{part.name} .*s11"):
        pickle.loads(pickle.dumps(store)).read("s11", verify=True)
    part.unlink()
    with pytest.raises(InputError, match=rf"{part.name} .*s11"):
        pickle.loads(pickle.dumps(store)).read("s11")


def test_the_cut_into_parts_changes_no_row(tmp_path: Path, slides: pd.DataFrame, monkeypatch: Any) -> None:
    """Here by `part_mb` alone, or into several parts for each CPU."""
    one = ingest(slides, str(tmp_path / "one"), "float16", 8, 1)
    monkeypatch.setattr("momkd_ray.bags.ingest._PARTS_PER_CPU", 0)
    two = ingest(slides, str(tmp_path / "two"), "float16", 8, 1)
    assert one.slides["part"].nunique() > two.slides["part"].nunique() == 1
    pd.testing.assert_series_equal(one.slides["sha256"], two.slides["sha256"])
    for slide_id in slides["slide_id"]:
        assert_same_bag(one.read(slide_id), two.read(slide_id))


def test_ingest_goes_on_where_it_stopped(tmp_path: Path, slides: pd.DataFrame) -> None:
    folder = tmp_path / "store"
    first = ingest(slides, str(folder), "float16", 8, 1)
    before = times(folder)
    ingest(slides, str(folder), "float16", 8, 1)
    assert times(folder) == before
    lost = first.slides["part"].iloc[0]
    (folder / lost).unlink()
    assert not covers(str(folder), slides, "float16", 8)
    (folder / "manifest.json").unlink()
    again = ingest(slides, str(folder), "float16", 8, 1)
    assert {(name, time) for name, time in before.items() if name != lost} < times(folder).items()
    pd.testing.assert_series_equal(again.slides["sha256"], first.slides["sha256"])


def test_new_slides_are_appended_and_changed_ones_read_again(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    assert not covers(uri, slides[slides["slide_id"] == "s02"], "float16", 8)
    old = ingest(slides.iloc[2:6], uri, "float16", 8, 1)
    before = times(tmp_path / "store")
    assert covers(uri, slides[slides["slide_id"].isin(["s03", "s02"])], "float16", 8)
    assert not covers(uri, slides, "float16", 8)
    write_h5(Path(slides["path"].iloc[7]), n=15, seed=70)
    store = ingest(slides.drop(index=3), uri, "float16", 8, 1)
    assert covers(uri, slides, "float16", 8), "a slide that is not asked for now stays"
    assert before.items() < times(tmp_path / "store").items()
    write_h5(Path(slides["path"].iloc[4]), n=16, seed=71)
    newest = ingest(slides, uri, "float16", 8, 1)
    changed = store.slides["sha256"] != newest.slides["sha256"]
    assert list(changed[changed].index) == ["s04"]
    assert newest.read("s04", verify=True).n_patches == 16
    assert old.slides.loc["s03", "sha256"] == newest.slides.loc["s03", "sha256"]
    for form in (("float32", 8), ("float16", 4)):
        with pytest.raises(InputError, match="choose another store"):
            covers(uri, slides[slides["slide_id"] == "s02"], *form)
        with pytest.raises(InputError, match="choose another store"):
            ingest(slides, uri, *form, 1)


def test_all_bad_files_are_listed_and_good_bags_stay(tmp_path: Path, slides: pd.DataFrame) -> None:
    folder = tmp_path / "store"
    write_h5(Path(slides["path"].iloc[4]), features=with_value(np.nan))
    write_h5(Path(slides["path"].iloc[9]), features=with_value(7e4))
    with pytest.raises(InputError, match=r"2 of 12 feature files cannot be used, first: .*s04\.h5.*rejected"):
        ingest(slides, str(folder), "float16", 8, 1)
    rejected = pd.read_csv(folder / "rejected.csv")
    assert list(rejected.columns) == ["slide_id", "path", "reason"]
    assert list(rejected["slide_id"]) == ["s04", "s09"]
    assert "s09.h5 holds the value 70000, too large for float16" in rejected["reason"][1]
    assert not (folder / "manifest.json").exists()
    good = times(folder)
    for place in (4, 9):
        write_h5(Path(slides["path"].iloc[place]), seed=place)
    ingest(slides, str(folder), "float16", 8, 1)
    assert not (folder / "rejected.csv").exists()
    assert good
    assert good.items() < times(folder).items()


def test_ingest_refuses_what_does_not_belong(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    ingest(slides.iloc[:3], uri, "float16", 8, 1)
    write_h5(Path(slides["path"].iloc[3]), width=4)
    with pytest.raises(InputError, match=r"1 of 1 .*s03\.h5 has features of width 4 where 6 is expected"):
        ingest(slides.iloc[3:4], uri, "float16", 8, 1)
    with pytest.raises(InputError, match="s03 is listed twice"):
        ingest(slides.iloc[[3, 3]], uri, "float16", 8, 1)
    with pytest.raises(InputError, match="no slides"):
        ingest(slides.iloc[:0], uri, "float16", 8, 1)
    with pytest.raises(InputError, match="is a file"):
        ingest(slides, slides["path"].iloc[0], "float16", 8, 1)


def test_headers_show_missing_files_and_odd_widths(tmp_path: Path, slides: pd.DataFrame) -> None:
    assert feature_faults(slides, Recipe()) == []
    Path(slides["path"].iloc[0]).unlink()
    write_h5(Path(slides["path"].iloc[5]), width=4)
    faults = {fault["slide_id"]: fault["reason"] for fault in feature_faults(slides, Recipe())}
    assert set(faults) == {"s00", "s05"}
    assert all(text in faults["s05"] for text in ("s05.h5", "width 4", "s01.h5", "width 6"))
    with pytest.raises(InputError, match="2 of 12 feature files"):
        ingest(slides, str(tmp_path / "store"), "float16", 8, 1)


def test_features_extracted_again_are_ingested_again(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    before = ingest(slides, uri, "float32", 8, 1)
    other = tmp_path / "other-encoder"
    other.mkdir()
    moved = slides.assign(path=[str(other / Path(path).name) for path in slides["path"]])
    for i, path in enumerate(moved["path"]):
        write_h5(Path(path), n=1 + 3 * i if i != 2 else 7, seed=100 + i)
    assert covers(uri, slides, "float32", 8)
    assert not covers(uri, moved, "float32", 8)
    after = ingest(moved, uri, "float32", 8, 1)
    for i, slide_id in enumerate(moved["slide_id"]):
        assert not np.array_equal(before.read(slide_id).features, after.read(slide_id).features)
        np.testing.assert_array_equal(after.read(slide_id).features, features_in(moved["path"].iloc[i]))
    for path in moved["path"]:
        Path(path).unlink()
    assert covers(uri, moved, "float32", 8), "a store needs no feature files any more"


def test_shared_bags_are_never_an_older_version_of_a_slide(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    ingest(slides, uri, "float32", 8, 1)
    for seed in range(200, 204):  # part names are hashes: which of two versions is read last is chance
        write_h5(Path(slides["path"].iloc[4]), n=13, seed=seed)
        store = ingest(slides, uri, "float32", 8, 1)
        shared = share_bags(store, ["s04", "s05"], 0.5)
        assert isinstance(shared, SharedBags)
        np.testing.assert_array_equal(shared.read("s04").features, features_in(slides["path"].iloc[4]))
        with pytest.raises(InputError, match="s06"):
            shared.read("s06")
