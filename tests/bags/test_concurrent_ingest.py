"""Ingests into one store at the same time end with the union of their slides."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.bags import EXACT, listed, relisted, stored, write_h5
from support.s3 import S3Server

from momkd_ray import storage
from momkd_ray.bags import ingest as ingest_module
from momkd_ray.bags.ingest import is_current
from momkd_ray.bags.store import BagStore
from momkd_ray.errors import InputError, RunError
from momkd_ray.storage import local_lock


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "shared")
    server: S3Server = request.getfixturevalue("s3_server")
    return f"{server.uri}/shared"


def add(location: str) -> None:
    storage.update(location, lambda content: str(int(content or b"0") + 1).encode())


def test_no_update_of_many_threads_is_lost(tmp_path: Path) -> None:
    location = str(tmp_path / "counter")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, [location] * 30))
    assert storage.read_text(location) == "30"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


@pytest.mark.parametrize("before", [None, "5"])
def test_an_update_that_another_one_has_overtaken_on_s3_is_made_again(s3_server: S3Server, before: str | None) -> None:
    """Here by four others, each between reading and writing."""
    location = f"{s3_server.uri}/counter"
    if before:
        storage.write_text(location, before)
    overtaking = [None] * 4

    def change(content: bytes | None) -> bytes:
        if overtaking:
            overtaking.pop()
            add(location)
        return str(int(content or b"0") + 1).encode()

    storage.update(location, change)
    assert storage.read_text(location) == str(int(before or 0) + 5)


def test_a_change_that_fails_changes_nothing_and_keeps_no_lock(place: str) -> None:
    location = f"{place}/x"
    storage.update(location, lambda content: b"first" if content is None else b"")

    def fails(content: bytes | None) -> bytes:
        raise InputError("refused")

    with pytest.raises(InputError, match="refused"):
        storage.update(location, fails)
    assert storage.read_text(location) == "first"
    assert storage.list_names(place) == ["x"]


def test_the_lock_of_a_killed_writer_is_removed_and_a_living_one_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / ".x.lock"
    lock.write_text("host 1 killed")
    monkeypatch.setattr(local_lock, "ABANDONED_AFTER_S", 0.2)
    storage.update(str(tmp_path / "x"), lambda _: b"1")
    assert not lock.exists()
    lock.write_text("host 2 alive")
    monkeypatch.setattr(local_lock, "ABANDONED_AFTER_S", 60)
    monkeypatch.setattr(local_lock, "WAIT_S", 0.3)
    with pytest.raises(RunError, match="held by process 2 on host"):
        storage.update(str(tmp_path / "x"), lambda _: b"2")


def during(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Runs something once when an ingest has written its parts, and not yet its manifest."""
    real = ingest_module.mixed_encoder_faults

    def interleaved(*arguments: Any) -> Any:
        monkeypatch.setattr(ingest_module, "mixed_encoder_faults", real)
        run()
        return real(*arguments)

    monkeypatch.setattr(ingest_module, "mixed_encoder_faults", interleaved)


@pytest.mark.parametrize(
    ("first", "second"), [((0, 6), (6, 12)), ((0, 8), (4, 12)), ((0, 12), (0, 12)), ((0, 12), (3, 5))]
)
def test_interleaved_ingests_end_with_the_union(
    place: str, slides: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, first: tuple[int, int], second: tuple[int, int]
) -> None:
    during(monkeypatch, lambda: stored(slides.iloc[slice(*second)], place, EXACT))
    stored(slides.iloc[slice(*first)], place, EXACT)
    union = sorted({*slides["slide_id"][slice(*first)], *slides["slide_id"][slice(*second)]})
    store = BagStore.open(place)
    assert list(store.slides.index) == union
    for slide_id in union:
        assert store.read(slide_id).slide_id == slide_id
    for part in (first, second):  # both can be resumed
        assert is_current(place, slides.iloc[slice(*part)], EXACT)


def test_ingests_side_by_side_end_with_the_union(tmp_path: Path, slides: pd.DataFrame) -> None:
    uri = str(tmp_path / "shared")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda first: stored(slides.iloc[first : first + 6], uri, EXACT), (0, 3, 6)))
    assert list(BagStore.open(uri).slides.index) == list(slides["slide_id"])


def test_another_encoder_that_was_faster_is_refused(
    tmp_path: Path, slides: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "shared")
    (tmp_path / "other").mkdir()
    other = listed([write_h5(tmp_path / "other" / "t.h5", width=4)])
    during(monkeypatch, lambda: stored(other, uri, EXACT))
    with pytest.raises(InputError, match=r"another command has meanwhile stored .* another store\.uri"):
        stored(relisted(slides), uri, EXACT)
    assert list(BagStore.open(uri).slides.index) == ["t"]
