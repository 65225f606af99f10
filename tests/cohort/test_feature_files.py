"""Feature files are found by the slides' names, however scanners and extractors have lengthened either."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_ray.cohort.feature_files import find_features
from momkd_ray.cohort.option_names import told_as_options
from momkd_ray.cohort.slide_names import SLIDE_SUFFIXES, slide_id_of
from momkd_ray.cohort.slides import read_slides

GDC = ".f6e9a5df-d8fb-4b9c-9a4e-2d1c0b7a9e11"


def touch(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return str(folder)


def found(folder: str, *names: str) -> dict[str, str]:
    """Slide's name as written -> file, of the slides that have one."""
    features = find_features(folder, {name: name for name in names})
    root = f"{folder}/"
    return {name: file.path.removeprefix(root) for name, file in features.files.items() if file.stamp}


@given(name=st.from_regex(r"[A-Za-z0-9][\w-]{0,8}(\.[0-9]{1,3})?", fullmatch=True), data=st.data())
def test_a_slide_is_its_name_without_any_known_suffixes(name: str, data: st.DataObject) -> None:
    added = data.draw(st.lists(st.sampled_from(sorted(SLIDE_SUFFIXES)), max_size=3))
    upper = data.draw(st.booleans())
    assert slide_id_of(name + "".join(added).upper() if upper else name + "".join(added)) == name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("S.h5", "S"),
        ("S.h5", "S.svs"),
        ("S.pt", "S.h5"),
        ("S.h5", "S.ome.tiff"),
        ("S.svs.h5", "S.svs"),
        ("S.svs.h5", "S"),
        ("S.svs.pt", "S.czi"),
        ("S.ome.h5", "S.ome.tif"),
        ("S.svs.h5", "S.svs.h5"),
        (f"S{GDC}.h5", f"S{GDC}.svs"),
        (f"S{GDC}.h5", "S"),
        ("S.h5", f"S{GDC}.svs"),
        ("h5_files/S.h5", "S.svs"),
        ("P1/S.h5", "P1/S.h5"),
        ("P1/S.h5", r"P1\S.svs"),
        ("P1/h5_files/S.svs.h5", "./P1/S.svs"),
        ("S.h5", "P1/S.svs"),
        ("S.h5", "/archive/P1/S.svs"),
        ("S.h5", r"D:\archive\S.svs"),
    ],
)
def test_the_file_of_a_slide(tmp_path: Path, file: str, name: str) -> None:
    folder = touch(tmp_path, file, "other.h5")
    assert found(folder, name, "absent.svs") == {name: file}
    if name.startswith("P1") and file.startswith("P1"):
        assert list(found(folder, f"{folder}/{name}").values()) == [file]


def test_one_file_is_never_the_file_of_two_slides_nor_one_of_two_files_taken(tmp_path: Path) -> None:
    folder = touch(tmp_path, "S.h5", "T.svs.h5", "T.ndpi.h5", "U.h5", "U.svs.h5")
    assert found(folder, "S.svs", "S.ndpi") == {}
    assert found(folder, "T.czi", "S") == {"S": "S.h5"}
    assert found(folder, "T.svs", "T.ndpi") == {"T.svs": "T.svs.h5", "T.ndpi": "T.ndpi.h5"}
    assert found(folder, "U.svs") == {"U.svs": "U.svs.h5"}
    assert found(folder, "U") == {"U": "U.h5"}
    assert found(folder, "A/S.h5", "B/S.h5") == {}
    features = find_features(folder, {"U": "U.svs"})
    assert features.unnamed == ("S.h5", "T.ndpi.h5", "T.svs.h5", "U.h5")


def test_a_folder_above_is_told_where_the_features_lie(tmp_path: Path) -> None:
    names = {f"S{i}": f"S{i}.svs" for i in range(3)}
    job = tmp_path / "job"
    touch(job / "20x/patches", *(f"S{i}_patches.h5" for i in range(3)))
    touch(job / "20x/features_uni_v1", *(f"S{i}.h5" for i in range(2)))
    features = find_features(str(job), names)
    assert not any(file.stamp for file in features.files.values())
    assert features.elsewhere == (
        f"{job} holds the feature file of none of the 3 slides, but 20x/features_uni_v1/ holds 2 of them: set "
        f"features.dir to {job}/20x/features_uni_v1"
    )
    touch(job / "20x/slide_features_titan", *(f"S{i}.h5" for i in range(3)))
    touch(job / "40x features/h5_files", *(f"S{i}.h5" for i in range(3)))
    with told_as_options({"features.dir": "--features"}):
        told = find_features(str(job), names).elsewhere
    assert f"give --features '{job}/40x features', or" in told
    assert told.index("40x features/ holds 3") < told.index("features_uni_v1") < told.index("slide_features_titan")
    assert told.endswith("whichever is meant")


def test_folders_that_divide_the_slides_are_read(tmp_path: Path) -> None:
    folder = touch(tmp_path, "P1/a.h5", "P1/b.h5", "P2/c.h5", "P2/thumbnail.png")
    names = {name: f"{name}.svs" for name in "abcd"}
    features = find_features(folder, names)
    assert {slide for slide, file in features.files.items() if file.stamp} == {"a", "b", "c"}
    assert "3 feature files are read from 2 folders below it" in features.understood[0].what
    assert not features.elsewhere
    assert find_features(str(tmp_path / "nowhere"), names).elsewhere == ""


def test_slides_keep_what_tells_them_apart(tmp_path: Path) -> None:
    table = tmp_path / "slides.csv"
    table.write_text("PATIENT,FILENAME\nA,1/S.h5\nB,2/S.h5\nC,T.svs\nC,T.ndpi\nD,U.svs\nD,U.h5\nE,V.svs\nF,V\n")
    slides = read_slides(str(table))
    assert slides.table["slide_id"].tolist() == ["1/S", "2/S", "T.ndpi", "T.svs", "U"]
    assert [(fault.id, fault.problem) for fault in slides.faults] == [("V", "duplicated")]
    assert [entry.what for entry in slides.understood] == [
        "1 slide has several rows of the same patient, which count once, such as 'U' (data rows 5 and 6)",
        "2 slides are named by a path, such as '1/S.h5'",
    ]
