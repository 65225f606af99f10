"""Files appear whole or not at all, and places that cannot be used are named in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from momkd_ray import storage
from momkd_ray.errors import InputError


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    place = str(tmp_path / "a" / "b.txt")
    storage.write_text(place, "old")

    def broken() -> None:
        with storage.writing(place) as stream:
            stream.write(b"half")
            assert storage.read_text(place) == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert storage.read_text(place) == "old"
    assert storage.names_below(str(tmp_path / "a")) == ["b.txt"]
    storage.write_text(place, "new")
    assert storage.read_text(place) == "new"


def test_json_without_a_value_is_refused_rather_than_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(str(tmp_path / "x.json"), {"auc": float("nan")})
    assert not storage.exists(str(tmp_path / "x.json"))


def test_places_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run"):
        storage.write_text(str(tmp_path / "file" / "run" / "x"), "")
    with pytest.raises(InputError, match="foo://bucket"):
        storage.exists("foo://bucket/x")


def test_a_uri_may_hold_spaces() -> None:
    _, path = storage.filesystem(f"file:///{'a folder'}/slide 1.h5")
    assert path == "/a folder/slide 1.h5"


def test_names_of_a_folder_that_is_not_there_are_none(tmp_path: Path) -> None:
    assert storage.names_below(str(tmp_path / "nowhere")) == []
