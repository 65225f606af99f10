"""More than two classes: by names, lists and cut-offs; what is ambiguous or absent is refused in one sentence."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from momkd_ray.cohort.labels import sort_labels
from momkd_ray.config.load import Config
from momkd_ray.config.sections import CohortConfig
from momkd_ray.errors import InputError


def settings(classes: Any, **other: Any) -> CohortConfig:
    return CohortConfig.model_validate({"clinical": "c.csv", "label": "L", "classes": classes, **other})


def sorted_by(classes: Any, labels: str) -> dict[str, int]:
    return dict(sort_labels(settings(classes), Counter(labels.split()), "c.csv").y)


def test_names_lists_and_cut_offs() -> None:
    assert sorted_by(["zero", "low", "high"], "high zero low other") == {"zero": 0, "low": 1, "high": 2}
    assert sorted_by({"no": 0, "weak": [1, 2], "strong": 3}, "0 1 2 3") == {"0": 0, "1": 1, "2": 1, "3": 2}
    scores = {"low": "< 11", "middle": ">= 11 and <= 25", "high": "> 25"}
    assert sorted_by(scores, "3 11 25 25.5 x") == {"3": 0, "11": 1, "25": 1, "25.5": 2}
    assert sorted_by({"LumA": "LumA", "LumB": "LumB", "other": "rest"}, "LumA LumB Her2") == {
        "LumA": 0,
        "LumB": 1,
        "Her2": 2,
    }


@pytest.mark.parametrize(
    ("classes", "labels", "sentence"),
    [
        ({"low": "< 15", "middle": ">= 11 and <= 25", "high": "> 25"}, "3 12 30", "'12' is in both classes"),
        (["a", "b", "c"], "a b b", "no 'L' is 'c' \\(cohort.classes\\); its values are 'b' \\(2\\), 'a' \\(1\\)"),
        ({"x": "a", "y": ["b", "a"], "z": "c"}, "a b c", "cohort.classes gives 'a' to 'x' and to 'y'"),
    ],
)
def test_what_is_ambiguous_or_absent_is_refused(classes: Any, labels: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        sorted_by(classes, labels)


@pytest.mark.parametrize(
    ("classes", "other", "sentence"),
    [
        (["a"], {}, "two or more are needed"),
        (["a", "a", "b"], {}, "'a' is named twice"),
        ("abc", {}, "name the classes in a list"),
        (["a", "b", "c"], {"positive": "a"}, "classes and positive are both given"),
        (["a", "b", "c"], {"slide_labels": "any_positive"}, "which is for two classes"),
    ],
)
def test_a_bad_list_is_refused(classes: Any, other: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        settings(classes, **other)


def test_two_classes_in_a_list_are_the_negative_and_the_positive_one() -> None:
    named = settings(["wt", "mut"])
    assert named.class_names == ("wt", "mut")
    assert sorted_by(["wt", "mut"], "mut wt") == {"wt": 0, "mut": 1}


def test_a_configuration_with_classes_is_read_back_in_their_order() -> None:
    tree = {"cohort": {"clinical": "/c.csv", "label": "L", "classes": {"z": "1", "a": ["2", "3"], "m": "> 4"}}}
    config = Config.model_validate({**tree, "features": {"dir": "/f"}})
    again = Config.model_validate(yaml.safe_load(config.to_yaml()))
    assert again == config and again.cohort.class_names == ("z", "a", "m")
    plain = Config.model_validate({"cohort": {"clinical": "/c.csv", "label": "L"}, "features": {"dir": "/f"}})
    assert not {"classes", "ordered"} & set(plain.answer_keys()["cohort"])
