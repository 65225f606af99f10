"""The table of patients and slides of `predict`: which columns are recognised, and what is said of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from momkd_ray.errors import InputError
from momkd_ray.predict.slides import list_slides, match_patients, open_slides


@pytest.fixture
def features(tmp_path: Path) -> str:
    """A folder with the files of three slides."""
    for name in ("a1", "a2", "b"):
        (tmp_path / f"{name}.h5").write_bytes(b"x")
    return str(tmp_path)


def table_of(folder: str, *names: str) -> str:
    path = Path(folder) / "slides.csv"
    rows = [("A", "a1.svs", "pos"), ("A", "a2.svs", "pos"), ("B", "b.svs", "neg")]
    lines = [",".join(names), *(",".join(row[: len(names)]) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("patient_id", "slide"), False),
        (("case", "FILENAME"), True),
        (("Case", "FILENAME", "PR status"), True),
        (("who", "FILENAME"), True),
        (("Patient ID", "FILENAME", "case"), False),
    ],
)
def test_the_patients_are_found_by_name_or_beside_the_slides(features: str, names: tuple[str, ...], told: bool) -> None:
    path = table_of(features, *names)
    frame, column, said = open_slides(path, None, None)
    assert column == names[0]
    assert [f"the column '{names[0]}' is read as the patients'" in sentence for sentence in said] == [True] * told
    _, patients, faults = match_patients(path, list_slides(features), features, column, frame)
    assert (patients, faults) == ({"a1": "A", "a2": "A", "b": "B"}, [])


def test_messages_name_options_that_then_work(features: str) -> None:
    path, slides = table_of(features, "patient", "image"), list_slides(features)
    with pytest.raises(InputError, match=r"names the slides.*: give --slide-column the one that does") as told:
        match_patients(path, slides, features)
    assert "cohort." not in str(told.value)
    _, patients, faults = match_patients(path, slides, features, slide_column="image")
    assert (patients, faults) == ({"a1": "A", "a2": "A", "b": "B"}, [])
    path = table_of(features, "who", "image", "note")
    with pytest.raises(InputError, match=r"names the patients.*: give --patient-column the one that does"):
        open_slides(path, None, None)
    assert open_slides(path, "who", "image")[1:] == ("who", [])
    with pytest.raises(InputError, match=r"has no column 'picture': give --slide-column one of its columns"):
        match_patients(path, slides, features, "who", slide_column="picture")
