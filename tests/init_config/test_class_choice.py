"""The classes that `init` chooses from a column's values."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest

from momkd_ray.init_config.class_choice import choose_classes, in_order, patients_by_label, unlikelihood


def test_spellings_of_a_label_count_as_one_and_patients_once() -> None:
    labels = ["Positive", "Positive", "positive", "negative", "Negative ", "negative", "unknown", None]
    patients = ["a", "b", "c", "d", "e", "d", "f", "g"]
    assert patients_by_label(patients, labels) == {"Positive": 3, "negative": 2}
    assert patients_by_label(["a", "b", "c"], ["1", "1.0", "0"]) == {"1": 2, "0": 1}
    assert patients_by_label(["a", "b", "c"], ["+", "-", "n.a."]) == {"+": 1, "-": 1}


def test_words_of_a_result_are_likelier_a_label_than_more_or_other_values() -> None:
    receptor = Counter({"Positive": 20, "negative": 21, "Indeterminate": 1})
    stage, smoker, sex = (
        Counter({"I": 9, "II": 20, "III": 12}),
        Counter({"yes": 9, "no": 30}),
        Counter({"f": 20, "m": 20}),
    )
    for columns in permutations([receptor, stage, smoker, sex]):
        assert sorted(columns, key=unlikelihood) == [receptor, smoker, sex, stage]
    chosen = choose_classes(receptor)
    assert (chosen.names, chosen.certain, chosen.left_out) == (("negative", "Positive"), True, ("Indeterminate",))


@pytest.mark.parametrize(
    ("counts", "names", "certain"),
    [
        ({"II": 20, "I": 9, "III": 12, "IV": 2}, ("I", "II", "III"), True),
        ({"high": 9, "low": 8, "intermediate": 7}, ("low", "intermediate", "high"), True),
        ({"3": 9, "0": 8, "1": 7, "2": 6}, ("0", "1", "2", "3"), True),
        ({"LumA": 9, "Basal": 8, "Her2": 7}, ("LumA", "Basal", "Her2"), False),
        ({"wt": 9, "mut": 8, "not clear": 7}, ("wt", "mut"), True),
        ({"low": 9, "high": 8, "middle": 2}, ("low", "high"), True),
    ],
)
def test_all_values_of_usable_size_are_classes_where_no_two_are_the_results_of_a_test(
    counts: dict[str, int], names: tuple[str, ...], certain: bool
) -> None:
    chosen = choose_classes(Counter(counts))
    assert (chosen.names, chosen.certain) == (names, certain)
    assert set(chosen.left_out) == set(counts) - set(names)


@pytest.mark.parametrize(
    "grades",
    [["Stage I", "Stage IIA", "Stage IIB", "Stage III", "stage IV"], ["G1", "G2", "G3"], ["0", "1+", "2+", "3+"]],
)
def test_grades_are_sorted_from_any_order(grades: list[str]) -> None:
    for names in list(permutations(grades))[:24]:
        assert in_order(names) == grades


def test_other_names_have_no_order() -> None:
    for names in (["A", "B"], ["G1", "T2"], ["low", "other"], ["I", "2"], ["III", "iii"]):
        assert in_order(names) is None
