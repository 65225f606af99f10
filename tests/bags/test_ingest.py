"""Ingest stores every feature file exactly once, continues after interruptions and lists bad files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.bags import (
    EXACT,
    FORMAT,
    WIDTH,
    assert_same_bag,
    features_in,
    listed,
    relisted,
    stored,
    times,
    with_value,
    write_h5,
)

from momkd_ray.bags.ingest import ingest, is_current
from momkd_ray.bags.store import StoreFormat
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.ray_runtime.cluster import Connection


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


def test_a_cluster_stores_the_same_bytes_and_finds_the_same_faults(
    tmp_path: Path, slides: pd.DataFrame, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So little is read by this process even where there is a cluster, whose first tasks would begin later."""
    write_h5(tmp_path / "s05.h5", features=with_value(np.nan))
    slides = relisted(slides)
    monkeypatch.setattr("ray.data.from_items", None)
    here, faults = ingest(slides, str(tmp_path / "here"), EXACT, on_error="skip")
    monkeypatch.undo()
    monkeypatch.setattr("momkd_ray.ray_runtime.parallel_map.FIRST_TASKS_S", -1)
    there, same = ingest(slides, str(tmp_path / "there"), EXACT, on_error="skip")
    assert [fault.id for fault in faults] == ["s05"]
    assert same == faults
    pd.testing.assert_frame_equal(there.slides, here.slides)
    for part in here.slides["part"].unique():
        assert (tmp_path / "there" / part).read_bytes() == (tmp_path / "here" / part).read_bytes()


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
    assert not is_current(str(folder), slides, FORMAT)
    (folder / "manifest.json").unlink()
    again = stored(slides, str(folder))
    assert {(name, time) for name, time in before.items() if name != lost} < times(folder).items()
    pd.testing.assert_frame_equal(again.slides, first.slides)


def test_new_slides_are_appended_and_changed_ones_read_relisted(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    assert not is_current(uri, slides[slides["slide_id"] == "s02"], FORMAT)
    old = stored(slides.iloc[2:6], uri)
    before = times(tmp_path / "store")
    assert is_current(uri, slides[slides["slide_id"].isin(["s03", "s02"])], FORMAT)
    assert not is_current(uri, slides, FORMAT)
    write_h5(Path(slides["path"].iloc[7]), n=15, seed=70)
    slides = relisted(slides)
    store = stored(slides.drop(index=3), uri)
    assert is_current(uri, slides, FORMAT), "a slide that is not asked for now stays"
    assert before.items() < times(tmp_path / "store").items()
    write_h5(Path(slides["path"].iloc[4]), n=16, seed=71)
    slides = relisted(slides)
    newest = stored(slides, uri)
    changed = store.slides["sha256"] != newest.slides["sha256"]
    assert list(changed[changed].index) == ["s04"]
    assert newest.read("s04").n_patches == 16
    assert old.slides.loc["s03", "sha256"] == newest.slides.loc["s03", "sha256"]
    for form in (EXACT, StoreFormat("float16", 4, "auto"), StoreFormat("float16", 8, "knn")):
        with pytest.raises(InputError, match=r"set store\.uri to"):
            is_current(uri, slides[slides["slide_id"] == "s02"], form)
        with pytest.raises(InputError, match=r"set store\.uri to"):
            stored(slides, uri, form)


def spoiled_files(slides: pd.DataFrame) -> pd.DataFrame:
    """Of twelve slides: one with NaN, one missing, one too large for float16, and two of another width."""
    paths = [Path(path) for path in slides["path"]]
    write_h5(paths[4], features=with_value(np.nan))
    paths[6].unlink()
    write_h5(paths[8], width=4)
    write_h5(paths[9], features=with_value(7e4))
    write_h5(paths[10], width=4, seed=5)
    return relisted(slides)


def test_all_bad_files_are_listed_and_good_bags_stay(tmp_path: Path, slides: pd.DataFrame) -> None:
    folder = tmp_path / "store"
    bad = spoiled_files(slides)
    with pytest.raises(
        InputError, match=r"^5 of 12 feature files .* the first: .*s04\.h5.*rejected\.csv; .*--on-error skip$"
    ):
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
    assert len(stored(relisted(slides), str(folder)).slides) == 12
    assert not (folder / "rejected.csv").exists()
    assert good
    assert good.items() < times(folder).items()


def test_bad_files_may_be_left_out(tmp_path: Path, slides: pd.DataFrame) -> None:
    folder = tmp_path / "store"
    bad = spoiled_files(slides)
    store, faults = ingest(bad, str(folder), FORMAT, on_error="skip")
    assert [fault.id for fault in faults] == ["s04", "s06", "s08", "s09", "s10"]
    assert sorted({*store.slides.index, *(fault.id for fault in faults)}) == list(slides["slide_id"])
    assert len(pd.read_csv(folder / "rejected.csv")) == 5
    _, faults_again = ingest(bad, str(folder), FORMAT, on_error="skip")
    assert faults_again == faults
    with pytest.raises(InputError, match=r"s06\.h5"):
        ingest(bad.iloc[6:7], str(tmp_path / "none"), FORMAT, on_error="skip")


def test_ingest_refuses_what_does_not_belong(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "store")
    stored(slides.iloc[:3], uri)
    write_h5(Path(slides["path"].iloc[3]), width=4)
    with pytest.raises(InputError, match=r"1 of 1 .*s03\.h5 has features of width 4, but .* of 6"):
        stored(relisted(slides).iloc[3:4], uri)
    with pytest.raises(InputError, match="s03 is listed twice"):
        stored(slides.iloc[[3, 3]], uri)
    with pytest.raises(InputError, match="no slides"):
        stored(slides.iloc[:0], uri)
    with pytest.raises(InputError, match="is a file"):
        stored(slides, slides["path"].iloc[0])


def test_features_extracted_again_are_ingested_relisted(tmp_path: Path, slides: pd.DataFrame) -> None:
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
    assert is_current(uri, relisted(moved), EXACT), "a store needs no feature files any more"
    assert len(stored(relisted(moved), uri, EXACT).slides) == 12
