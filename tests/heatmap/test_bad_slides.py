"""Slides that cannot be drawn: they end the verb or are left out, and are listed as `predict` lists them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from support.command_line import outcome
from support.drawn_slides import HEIGHT, PATCH, WIDTH, write_slide
from support.models import card_of, small_model
from support.slide_images import write_pyramid

from momkd_ray.model.bundle import save_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Feature files of which `b` is none, and a model."""
    (tmp_path / "features").mkdir()
    for seed, name in enumerate(("a", "c")):
        write_slide(tmp_path / "features" / f"{name}.h5", seed=seed)
    (tmp_path / "features" / "b.h5").write_bytes(b"no HDF5")
    save_bundle(str(tmp_path / "model"), small_model(), card_of(small_model()))
    return tmp_path


def drawing(folder: Path, *arguments: str, out: str = "out") -> int:
    places = ("--features", str(folder / "features"), "--out", str(folder / out))
    return outcome("heatmap", str(folder / "model"), *places, *arguments)


def test_a_bad_feature_file_ends_the_verb_after_all_are_listed(
    folder: Path, no_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "features" / "d.h5").write_bytes(b"")
    assert drawing(folder) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 4 feature files cannot be used, the first: " in last
    listing = folder / "out" / "rejected.csv"
    assert last.endswith(f"; all are listed in {listing}; correct them, or go on without them by --on-error skip")
    assert pd.read_csv(listing)["id"].tolist() == ["b", "d"]
    assert not (folder / "out" / "a.png").exists()
    for name in ("a", "c"):
        (folder / "features" / f"{name}.h5").unlink()
    for on_error in ("stop", "skip"):
        assert drawing(folder, "--on-error", on_error) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert "2 of 2 feature files cannot be used" in last
        assert "--on-error" not in last


def test_a_bad_feature_file_is_left_out_told_last_and_listed_as_predict_lists_it(
    folder: Path, no_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drawing(folder, "--on-error", "skip") == 0
    listing = folder / "out" / "rejected.csv"
    told = f"1 slide is left out; {listing} lists it with the reason: b"
    assert capsys.readouterr().err.strip().splitlines()[-1] == told
    assert not list((folder / "out").glob("b.*"))
    predict = ("--features", str(folder / "features"), "--out", str(folder / "p.csv"), "--on-error", "skip")
    assert outcome("predict", str(folder / "model"), *predict) == 0
    assert listing.read_bytes() == (folder / "p.csv.rejected.csv").read_bytes()
    told = f"1 slide is left out; {folder / 'p.csv.rejected.csv'} lists it with the reason: b"
    assert told in capsys.readouterr().err
    # the others are as if the file were not there, and the listing goes with its cause
    left = {path.name: path.read_bytes() for path in (folder / "out").iterdir() if path.name != "rejected.csv"}
    (folder / "features" / "b.h5").unlink()
    assert drawing(folder) == 0
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == left


def test_a_slide_without_a_place_or_with_another_s_picture_is_left_out(
    folder: Path, no_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slide(folder / "features" / "b.h5", n=1, patch_size_level0=None)
    write_slide(folder / "features" / "d.h5", level0_width=None)
    (folder / "slides").mkdir()
    write_pyramid(folder / "slides" / "a.tiff", WIDTH // 2, HEIGHT, PATCH)
    (folder / "slides" / "c.png").write_text("no picture")
    Image.new("RGB", (80, 64)).save(folder / "slides" / "d.png")
    write_slide(folder / "features" / "e.h5")
    assert drawing(folder, "--images", str(folder / "slides")) == 1
    assert "4 of 5 feature files cannot be used" in capsys.readouterr().err
    assert drawing(folder, "--images", str(folder / "slides"), "--on-error", "skip") == 0
    assert pd.read_csv(folder / "out" / "slides.csv")["slide_id"].tolist() == ["e"]
    rejected = pd.read_csv(folder / "out" / "rejected.csv").set_index("id")
    assert rejected["problem"].to_dict() == {
        "a": "misshapen",
        "b": "missing value",
        "c": "unreadable",
        "d": "missing value",
    }
    assert [Path(path).name for path in rejected["location"]] == ["a.tiff", "b.h5", "c.png", "d.png"]
    assert "give the picture of this slide" in rejected.loc["a", "reason"]


def test_a_patient_s_bag_is_of_the_slides_that_can_be_read(folder: Path, no_cluster: None) -> None:
    model = small_model()
    save_bundle(str(folder / "model"), model, card_of(model).model_copy(update={"bag": "patient"}))
    table = folder / "slides.csv"
    table.write_text("PATIENT,FILENAME\nA,a\nA,b\nC,c\n")
    assert drawing(folder, "--slides", str(table), "--on-error", "skip") == 0
    assert drawing(folder, "--slides", str(table), "--slide", "c", out="alone") == 0
    assert (folder / "out" / "c.csv").read_bytes() == (folder / "alone" / "c.csv").read_bytes()
    (folder / "features" / "b.h5").unlink()
    table.write_text("PATIENT,FILENAME\nA,a\nC,c\n")
    assert drawing(folder, "--slides", str(table), out="without") == 0
    assert (folder / "out" / "a.csv").read_bytes() == (folder / "without" / "a.csv").read_bytes()


def test_slides_without_a_row_and_rows_without_a_file_are_told_and_end_nothing(
    folder: Path, no_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = folder / "slides.csv"
    table.write_text("who,FILENAME\nA,a\nZ,z\n")
    assert drawing(folder, "--slides", str(table)) == 0
    told = capsys.readouterr().err
    assert "the column 'who' is read as the patients'" in told
    assert f"1 slide of {table} without a feature file, not drawn: z" in told
    assert f"2 slides without a row in {table}, not drawn: b, c" in told
    listing = folder / "out" / "rejected.csv"
    assert told.strip().splitlines()[-1] == f"3 slides are left out; {listing} lists them with the reason: b, c, z"
    # of a chosen slide nothing is told of others, and its own reason instead of that it is unknown
    assert drawing(folder, "--slides", str(table), "--slide", "a") == 0
    assert "not drawn" not in capsys.readouterr().err
    assert not listing.exists()
    assert drawing(folder, "--slides", str(table), "--slide", "c") == 1
    assert f"{table} names no patient for slide c" in capsys.readouterr().err
    table.write_text("PATIENT,FILENAME\nA,a\n,c\n")
    assert drawing(folder, "--slides", str(table)) == 1
    assert "--on-error skip" in capsys.readouterr().err
    assert drawing(folder, "--slides", str(table), "--on-error", "skip") == 0


@pytest.mark.parametrize("known", [{"encoder": "uni"}, {"magnification": 10.0, "patch_px": 512}])
def test_features_that_the_model_was_not_trained_on_are_not_drawn(
    folder: Path, no_cluster: None, capsys: pytest.CaptureFixture[str], known: dict[str, object]
) -> None:
    (folder / "features" / "b.h5").unlink()
    write_slide(folder / "features" / "c.h5", encoder="conch_v15", target_magnification=20, patch_size=256)
    save_bundle(str(folder / "model"), small_model(), card_of(small_model()).model_copy(update=known))
    assert drawing(folder) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{folder / 'features' / 'c.h5'} " in said and "but the model was trained " in said
    assert drawing(folder, "--on-error", "skip") == 0
    assert pd.read_csv(folder / "out" / "rejected.csv")[["id", "problem"]].to_numpy().tolist() == [["c", "mixed"]]
    assert (folder / "out" / "a.png").exists() and not (folder / "out" / "c.png").exists()
