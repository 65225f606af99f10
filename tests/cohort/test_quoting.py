"""What a message quotes means the same once it is pasted."""

from __future__ import annotations

import shlex

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from momkd_ray.cohort.quoting import in_shell, in_yaml

AWKWARD = [
    *("no", "Yes", "on", "true", "True", "null", "~", "1", "0", "1.0", "1.10", "1e3", "1.0e+3", ".inf", "0x10", "010"),
    *(
        "1:30",
        "1_000",
        "2020-01-01",
        "2020-13-45",
        " a",
        "a ",
        "a b",
        "a\nb",
        "a\tb",
        "\n",
        "",
        "a: b",
        "a:",
        "#x",
        "a #b",
    ),
    *('"q"', "it's", 'it\'s "both"', "a\\b", "C:\\slides", "$HOME", "`x`", "!x", "it's $5!", "*x", "&x", "a&b", "a*b"),
    *("-", "- a", "--x", "?", "? a", "<<", "=", ",", "a,b", "[a]", "{a: b}", "[a", ">", "|", "%x", "@x", "...", "---"),
    *("\u2028", "\ufeff", "\x7f", "\x85", "\xa0", "\U0001f9ec", "s3://bucket/a b", "/mnt/a(1)", "S 1/2.svs"),
]
# as patients, columns, labels and paths mostly are
ORDINARY = [
    *(
        "slide_id",
        "Fold",
        "PR",
        "case-1",
        "TCGA-A1-A0SB-01Z",
        "low/high",
        "HER2+",
        "Größe",
        "切片",
        "s3://b/x",
        "/d/x.csv",
    ),
]
texts = st.one_of(st.text(), st.text("ab01 :-#'\"\\,[]{}&*!|>%@`~?=._\n\t"), st.sampled_from(AWKWARD))


@given(texts)
@example("2020-13-45")
def test_yaml_reads_what_was_meant(text: str) -> None:
    written = in_yaml(text)
    assert yaml.safe_load(written) == text
    assert yaml.safe_load(f"section: {{key: {written}}}") == {"section": {"key": text}}
    assert yaml.safe_load(f"section:\n  key: {written}\n") == {"section": {"key": text}}
    assert yaml.safe_load(f"[{written}, {written}]") == [text, text]
    assert "\n" not in written


@given(texts)
def test_a_shell_reads_what_was_meant(text: str) -> None:
    assert shlex.split(f"predict --label {in_shell(text)} --slides x") == ["predict", "--label", text, "--slides", "x"]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts(text: str) -> None:
    assert yaml.safe_load(in_yaml(text)) == text
    assert shlex.split(in_shell(text)) == [text]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_names_stay_as_they_are(text: str) -> None:
    assert in_yaml(text) == in_shell(text) == text
