"""Messages about tables in the words of a verb without a configuration."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from momkd_ray.cohort.option_names import set_to, told_as_options
from momkd_ray.cohort.slides import read_slides
from momkd_ray.cohort.table_files import require_columns
from momkd_ray.errors import InputError

OPTIONS = {"cohort.patient_column": "--patient-column", "cohort.slide_column": "--slide-column"}


def told(path: Path) -> str:
    with pytest.raises(InputError) as error, told_as_options(OPTIONS):
        read_slides(str(path))
    return str(error.value)


@pytest.mark.parametrize(
    ("header", "cure"),
    [
        ("who,FILENAME", "give --patient-column the one that does"),
        ("PATIENT,image", "give --slide-column the one that does"),
        ("PATIENT,FILENAME,slide_id", "give --slide-column FILENAME or slide_id, whichever does"),
    ],
)
def test_keys_become_options(tmp_path: Path, header: str, cure: str) -> None:
    path = tmp_path / "slides.csv"
    path.write_text(f"{header}\n" + ",".join(["P1", "s1", "s2"][: header.count(",") + 1]) + "\n")
    message = told(path)
    assert cure in message
    assert "cohort." not in message


@pytest.mark.parametrize(
    "content",
    ["PATIENT,FILENAME\n患者一,切片一\n患者二,切片二\n".encode("gb18030"), b"PATIENT,FILENAME\nA\x81\x8d,b\n"],
)
def test_an_encoding_that_no_option_names_is_no_cure(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "slides.csv"
    path.write_bytes(content)
    message = told(path)
    assert "as UTF-8" in message
    assert "cohort." not in message


@pytest.mark.parametrize("name", ["slide", "Slide No", "it's $5", 'the "slide"'])
def test_the_nearest_column_can_be_pasted_where_it_is_told(name: str) -> None:
    def cure(key: str) -> str:
        with pytest.raises(InputError) as error:
            require_columns([name], "t.csv", name.upper(), key=key)
        found = re.search(r" \(((?:set|give) .*)\); its columns are", str(error.value))
        assert found is not None
        return found[1]

    begins, value = cure("cohort.slide_column").split(" to ", 1)
    assert begins == "set cohort.slide_column" and yaml.safe_load(value) == name
    assert shlex.split(cure("--subgroups")) == ["give", "--subgroups", name]
    with told_as_options(OPTIONS):
        assert shlex.split(cure("cohort.slide_column")) == ["give", "--slide-column", name]
        assert cure("cohort.label").startswith("set cohort.label to")
    assert cure("cohort.slide_column").startswith(begins)


def test_a_sentence_goes_on_after_its_key() -> None:
    assert set_to("cohort.label") == "set cohort.label to"
    assert set_to("--label") == "give --label"
