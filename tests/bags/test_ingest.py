"""Feature files -> bags -> store: nothing is lost, nothing is invented, and bad files are named."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq
from sklearn.neighbors import NearestNeighbors

from momkd_ray.bags.ingest import ingest, is_current
from momkd_ray.bags.shared_bags import JointBags, SharedBags, join_bags, share_bags
from momkd_ray.bags.store import SCHEMA, BagStore, StoreFormat, from_row, row_at, rows_table, to_row
from momkd_ray.batches.collate import collate
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag, Recipe
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.formats.readers import read_bag
from momkd_ray.ray_runtime.cluster import Connection

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


def features_in(path: str) -> np.ndarray:
    return read_bag(path, "slide", Recipe()).features


def with_value(value: float) -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(9, WIDTH)).astype("f4")
    features[[4, 7], 2] = value
    return features


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


def listed(paths: list[Path], patients: list[str] | None = None) -> pd.DataFrame:
    """Slides as a cohort lists them, one a patient unless said otherwise."""
    stats = [path.stat() if path.exists() else None for path in paths]
    return pd.DataFrame(
        {
            "slide_id": [path.stem for path in paths],
            "patient_id": patients or [f"patient of {path.stem}" for path in paths],
            "path": map(str, paths),
            "file": [f"{s.st_size}-{s.st_mtime_ns}" if s else "" for s in stats],
            "bytes": [s.st_size if s else 0 for s in stats],
        }
    )


def again(slides: pd.DataFrame) -> pd.DataFrame:
    """The same slides, their files looked at now."""
    return listed([Path(path) for path in slides["path"]], slides["patient_id"].tolist())


@pytest.fixture
def slides(tmp_path: Path, ray_cluster: Connection) -> pd.DataFrame:
    """Twelve slides of 1 to 34 patches, one of them in the (1, P, D) layout."""
    paths = [write_h5(tmp_path / f"s{i:02d}.h5", n=1 + 3 * i, seed=i) for i in range(12)]
    features = np.random.default_rng(99).normal(size=(1, 7, WIDTH)).astype("f4")
    write_h5(paths[2], n=7, features=features)
    return listed(paths)


def times(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.glob("*.parquet")}


FORM = StoreFormat("float16", 8, "auto")
EXACT = StoreFormat("float32", 8, "auto")


def stored(slides: pd.DataFrame, uri: str, form: StoreFormat = FORM) -> BagStore:
    return ingest(slides, uri, form, part_mb=1)[0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_ingest_stores_every_bag_exactly(tmp_path: Path, slides: pd.DataFrame, dtype: str) -> None:
    seen: list[tuple[int, int]] = []
    shuffled, uri = slides.sample(frac=1, random_state=0), str(tmp_path / "store")
    store, faults = ingest(
        shuffled, uri, StoreFormat(dtype, 4, "auto"), part_mb=1, on_progress=lambda *progress: seen.append(progress)
    )
    assert (store.width, store.format, faults) == (WIDTH, StoreFormat(dtype, 4, "auto"), [])
    assert list(store.slides.index) == list(slides["slide_id"])
    assert seen == sorted(seen)
    assert seen[-1] == (12, 12)
    for slide_id, path in slides[["slide_id", "path"]].itertuples(index=False):
        bag = read_bag(path, slide_id, Recipe(4))
        expected = replace(bag, features=bag.features.astype(dtype))
        assert_same_bag(store.read(slide_id), expected)
        assert store.slides.loc[slide_id, "n_patches"] == bag.n_patches
    with pytest.raises(InputError, match="no slide s99"):
        store.read("s99")


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


def test_the_cut_into_parts_changes_no_row(tmp_path: Path, slides: pd.DataFrame, monkeypatch: Any) -> None:
    """Here by `part_mb` alone, or into several parts for each CPU."""
    one = stored(slides, str(tmp_path / "one"))
    monkeypatch.setattr("momkd_ray.bags.ingest._PARTS_PER_CPU", 0)
    two = stored(slides, str(tmp_path / "two"))
    assert one.slides["part"].nunique() > two.slides["part"].nunique() == 1
    pd.testing.assert_series_equal(one.slides["sha256"], two.slides["sha256"])
    for slide_id in slides["slide_id"]:
        assert_same_bag(one.read(slide_id), two.read(slide_id))


def test_ingest_goes_on_where_it_stopped(tmp_path: Path, slides: pd.DataFrame) -> None:
    folder = tmp_path / "store"
    first = stored(slides, str(folder))
    before = times(folder)
    stored(slides, str(folder))
    assert times(folder) == before
    lost = first.slides["part"].iloc[0]
    (folder / lost).unlink()
    assert not is_current(str(folder), slides, FORM)
    (folder / "manifest.json").unlink()
    again = stored(slides, str(folder))
    assert {(name, time) for name, time in before.items() if name != lost} < times(folder).items()
    pd.testing.assert_frame_equal(again.slides, first.slides)


def test_new_slides_are_appended_and_changed_ones_read_again(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    assert not is_current(uri, slides[slides["slide_id"] == "s02"], FORM)
    old = stored(slides.iloc[2:6], uri)
    before = times(tmp_path / "store")
    assert is_current(uri, slides[slides["slide_id"].isin(["s03", "s02"])], FORM)
    assert not is_current(uri, slides, FORM)
    write_h5(Path(slides["path"].iloc[7]), n=15, seed=70)
    slides = again(slides)
    store = stored(slides.drop(index=3), uri)
    assert is_current(uri, slides, FORM), "a slide that is not asked for now stays"
    assert before.items() < times(tmp_path / "store").items()
    write_h5(Path(slides["path"].iloc[4]), n=16, seed=71)
    slides = again(slides)
    newest = stored(slides, uri)
    changed = store.slides["sha256"] != newest.slides["sha256"]
    assert list(changed[changed].index) == ["s04"]
    assert newest.read("s04").n_patches == 16
    assert old.slides.loc["s03", "sha256"] == newest.slides.loc["s03", "sha256"]
    for form in (EXACT, StoreFormat("float16", 4, "auto"), StoreFormat("float16", 8, "knn")):
        with pytest.raises(InputError, match="choose another store"):
            is_current(uri, slides[slides["slide_id"] == "s02"], form)
        with pytest.raises(InputError, match="choose another store"):
            stored(slides, uri, form)


def spoiled_files(slides: pd.DataFrame) -> pd.DataFrame:
    """Of twelve slides: one with NaN, one missing, one too large for float16, and two of another width."""
    paths = [Path(path) for path in slides["path"]]
    write_h5(paths[4], features=with_value(np.nan))
    paths[6].unlink()
    write_h5(paths[8], width=4)
    write_h5(paths[9], features=with_value(7e4))
    write_h5(paths[10], width=4, seed=5)
    return again(slides)


def test_all_bad_files_are_listed_and_good_bags_stay(tmp_path: Path, slides: pd.DataFrame) -> None:
    folder = tmp_path / "store"
    bad = spoiled_files(slides)
    with pytest.raises(InputError, match=r"^5 of 12 feature files .* the first: .*s04\.h5.*rejected\.csv$"):
        stored(bad, str(folder))
    rejected = pd.read_csv(folder / "rejected.csv")
    assert rejected["id"].tolist() == ["s04", "s06", "s08", "s09", "s10"]
    assert rejected["problem"].tolist()[1:3] == ["missing", "mixed"]
    assert "s09.h5 holds the value 70000, too large for float16" in rejected["reason"][3]
    assert all(words in rejected["reason"][2] for words in ("s08.h5", "width 4", "s00.h5", "of 6"))
    assert not (folder / "manifest.json").exists()
    good = times(folder)
    for place in (4, 6, 8, 9, 10):
        write_h5(Path(slides["path"].iloc[place]), n=5, seed=place)
    assert len(stored(again(slides), str(folder)).slides) == 12
    assert not (folder / "rejected.csv").exists()
    assert good
    assert good.items() < times(folder).items()


def test_bad_files_may_be_left_out(tmp_path: Path, slides: pd.DataFrame) -> None:
    folder = tmp_path / "store"
    bad = spoiled_files(slides)
    store, faults = ingest(bad, str(folder), FORM, on_error="skip")
    assert [fault.id for fault in faults] == ["s04", "s06", "s08", "s09", "s10"]
    assert sorted({*store.slides.index, *(fault.id for fault in faults)}) == list(slides["slide_id"])
    assert len(pd.read_csv(folder / "rejected.csv")) == 5
    _, faults_again = ingest(bad, str(folder), FORM, on_error="skip")
    assert faults_again == faults
    with pytest.raises(InputError, match=r"s06\.h5"):
        ingest(bad.iloc[6:7], str(tmp_path / "none"), FORM, on_error="skip")


def test_the_same_content_twice_is_found_by_its_hash(tmp_path: Path, slides: pd.DataFrame) -> None:
    paths = [Path(path) for path in slides["path"]]
    for copy, original in ((7, 3), (9, 5)):
        paths[copy].write_bytes(paths[original].read_bytes())
    with h5py.File(paths[7], "a") as file:
        file.attrs["name"] = "what a file says of itself is not its content"
    owners = [f"P{i}" for i in range(12)]
    owners[9] = owners[5]
    _, faults = ingest(listed(paths, owners), str(tmp_path / "store"), FORM, on_error="skip")
    assert [(fault.id, fault.problem) for fault in faults] == [
        ("s03", "duplicated"),  # of two patients: neither can be trusted
        ("s07", "duplicated"),
        ("s09", "duplicated"),  # of one patient: the first stays
    ]
    assert "another patient (P7)" in faults[0].reason
    assert "s05.h5" in faults[2].reason


def test_an_encoder_that_differs_names_both_files(tmp_path: Path, slides: pd.DataFrame) -> None:
    for path, encoder in zip(slides["path"][:4], ["uni_v1", "uni_v1", "conch_v15", "uni_v1"], strict=True):
        with h5py.File(path, "a") as file:
            file["features"].attrs["encoder"] = encoder
    store, faults = ingest(again(slides), str(tmp_path / "store"), FORM, on_error="skip")
    assert store.encoder == "uni_v1"
    assert [(fault.id, fault.problem) for fault in faults] == [("s02", "mixed")]
    assert all(words in faults[0].reason for words in ("s02.h5", "conch_v15", "s00.h5", "uni_v1"))


def test_ingest_refuses_what_does_not_belong(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    stored(slides.iloc[:3], uri)
    write_h5(Path(slides["path"].iloc[3]), width=4)
    with pytest.raises(InputError, match=r"1 of 1 .*s03\.h5 has features of width 4, but .* of 6"):
        stored(again(slides).iloc[3:4], uri)
    with pytest.raises(InputError, match="s03 is listed twice"):
        stored(slides.iloc[[3, 3]], uri)
    with pytest.raises(InputError, match="no slides"):
        stored(slides.iloc[:0], uri)
    with pytest.raises(InputError, match="is a file"):
        stored(slides, slides["path"].iloc[0])


def test_features_extracted_again_are_ingested_again(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    before = stored(slides, uri, EXACT)
    other = tmp_path / "other-encoder"
    other.mkdir()
    paths = [
        write_h5(other / Path(path).name, n=1 + 3 * i if i != 2 else 7, seed=100 + i)
        for i, path in enumerate(slides["path"])
    ]
    moved = listed(paths)
    assert is_current(uri, slides, EXACT)
    assert not is_current(uri, moved, EXACT)
    after = stored(moved, uri, EXACT)
    for slide_id, path in zip(moved["slide_id"], moved["path"], strict=True):
        assert not np.array_equal(before.read(slide_id).features, after.read(slide_id).features)
        np.testing.assert_array_equal(after.read(slide_id).features, features_in(path))
    for path in paths:
        path.unlink()
    assert is_current(uri, again(moved), EXACT), "a store needs no feature files any more"
    assert len(stored(again(moved), uri, EXACT).slides) == 12


def test_shared_bags_are_never_an_older_version_of_a_slide(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    stored(slides, uri, EXACT)
    write_h5(Path(slides["path"].iloc[4]), n=13, seed=200)
    store = stored(again(slides), uri, EXACT)
    shared = share_bags(store, ["s04", "s05"], 0.5)
    assert isinstance(shared, SharedBags)
    np.testing.assert_array_equal(shared.read("s04").features, features_in(slides["path"].iloc[4]))
    with pytest.raises(InputError, match="s06"):
        shared.read("s06")


def test_a_joint_bag_is_its_slides_side_by_side() -> None:
    bags = [make_bag(n, seed=n) for n in (1, 12, 5)]

    class Made:
        def read(self, bag_id: str) -> Bag:
            return next(bag for bag in bags if bag.slide_id == bag_id)

    joint = JointBags(Made(), {"P": ("slide-12", "slide-5", "slide-1")}).read("P")
    apart = collate([bags[1], bags[2], bags[0]])
    together = collate([joint])
    assert torch.equal(together.features_PD, apart.features_PD)
    assert together.patches_per_bag == (18,)
    assert torch.equal(together.graph.edge_index_2M, apart.graph.edge_index_2M)
    assert_same_bag(join_bags("slide-5", [bags[2]]), bags[2])
