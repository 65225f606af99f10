"""Slides of another encoder, or with the content of another slide, are listed."""

from __future__ import annotations

from pathlib import Path

import h5py
import pandas as pd
import pytest
from support.bags import (
    FORMAT,
    listed,
    relisted,
)
from support.feature_files import values, write_hdf5

from momkd_ray.bags.consistency import mixed_scale_faults, slide_vector_faults
from momkd_ray.bags.ingest import ingest
from momkd_ray.errors import InputError


def test_the_same_content_twice_is_found_by_its_hash(tmp_path: Path, slides: pd.DataFrame) -> None:
    paths = [Path(path) for path in slides["path"]]
    for copy, original in ((7, 3), (9, 5)):
        paths[copy].write_bytes(paths[original].read_bytes())
    with h5py.File(paths[7], "a") as file:
        file.attrs["name"] = "what a file says of itself is not its content"
    owners = [f"P{i}" for i in range(12)]
    owners[9] = owners[5]
    _, faults = ingest(listed(paths, owners), str(tmp_path / "store"), FORMAT, on_error="skip")
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
    store, faults = ingest(relisted(slides), str(tmp_path / "store"), FORMAT, on_error="skip")
    assert store.encoder == "uni_v1"
    assert [(fault.id, fault.problem) for fault in faults] == [("s02", "mixed")]
    assert all(words in faults[0].reason for words in ("s02.h5", "conch_v15", "s00.h5", "uni_v1"))


def test_a_magnification_that_differs_names_both_files() -> None:
    slides = pd.DataFrame({"slide_id": ["a", "b", "c", "d"], "path": ["f/a.h5", "f/b.h5", "f/c.h5", "f/d.h5"]})
    scales = {"a": (20.0, 256), "b": (10.0, 256), "c": (20.3, 256), "d": (None, None)}
    entries = {slide: {"magnification": scale[0], "patch_px": scale[1]} for slide, scale in scales.items()}
    (fault,) = mixed_scale_faults(entries, slides, None)
    assert (fault.id, fault.problem) == ("b", "mixed")
    said = "f/b.h5 is at 10x magnification in patches of 256 pixels, but f/a.h5 at 20x magnification"
    assert fault.reason.startswith(said)


def test_files_of_one_patch_each_are_embeddings_of_slides() -> None:
    slides = pd.DataFrame({"slide_id": ["a", "b"], "path": ["f/a.pt", "f/b.pt"]})
    assert [fault.id for fault in slide_vector_faults({s: {"n_patches": 1} for s in "ab"}, slides)] == ["a", "b"]
    assert not slide_vector_faults({"a": {"n_patches": 1}, "b": {"n_patches": 2}}, slides)
    assert not slide_vector_faults({"a": {"n_patches": 1}}, slides)


def test_magnifications_may_be_mixed_on_purpose_and_the_store_knows_all(tmp_path: Path) -> None:
    slides = pd.DataFrame({"slide_id": ["a", "b", "c"], "patient_id": ["a", "b", "c"]})
    slides["path"] = [str(write_hdf5(tmp_path / f"{s}.h5", "trident", values(9, i))) for i, s in enumerate("abc")]
    with h5py.File(tmp_path / "b.h5", "a") as file:
        file["coords"].attrs["target_magnification"] = 10
    with pytest.raises(InputError, match=r"b\.h5 is at 10x.*set features\.mixed_magnification to allow"):
        ingest(relisted(slides), str(tmp_path / "refused"), FORMAT)
    store, faults = ingest(relisted(slides), str(tmp_path / "store"), FORMAT, mixed_magnification=True)
    assert not faults and store.feature_format("abc") == "trident"
    assert [scale.magnification for scale in store.scales("abc")] == [20, 10]
    assert [scale.magnification for scale in store.scales("ac")] == [20]
