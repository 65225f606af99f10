"""The columns of a table that may be the label, as classes or as a number, and the choice among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, SITE_COLUMNS, SLIDE_COLUMNS, is_known
from momkd_ray.cohort.labels import folded_label, label_numbers, says_missing
from momkd_ray.errors import InputError
from momkd_ray.init_config.class_choice import choose_classes, patients_by_label, unlikelihood
from momkd_ray.init_config.draft import Draft
from momkd_ray.init_config.fold_columns import fold_columns
from momkd_ray.init_config.folder import Table

MAX_CLASSES = 10  # distinct values up to which a column may have classes
MOSTLY = 0.9  # share of the values of a column of numbers that are numbers
_SHOWN = 6


@dataclass(frozen=True)
class LabelColumns:
    """The columns of a table that may be the label.

    Attributes:
        classes: columns of 2 to 10 values, with the number of patients of each; the likeliest label first.
        numbers: columns of more numbers, with the numbers of their rows.
    """

    classes: dict[str, Counter[str]]
    numbers: dict[str, list[float]]

    def __len__(self) -> int:
        return len(self.classes) + len(self.numbers)

    def __contains__(self, column: str) -> bool:
        return column in self.classes or column in self.numbers


def label_columns(table: Table, patient: str, besides: Collection[str]) -> LabelColumns:
    """Finds the columns that may be the label.

    Args:
        table: with a row a patient or a slide.
        patient: its column of patients.
        besides: columns that are no label.
    """
    classes: dict[str, Counter[str]] = {}
    numbers: dict[str, list[float]] = {}
    no_labels = {patient, *besides, *fold_columns(table)}
    for column in table.texts:
        if column in no_labels or not _is_of_patients(table, patient, column):
            continue
        counts = patients_by_label(table.texts[patient], table.texts[column])
        if 2 <= len(counts) <= MAX_CLASSES:
            if sorted(counts.values())[-2] >= 2:
                classes[column] = counts
        elif not is_known(column, (*PATIENT_COLUMNS, *SLIDE_COLUMNS, *SITE_COLUMNS)):
            values = [value for value in table.values(column) if not says_missing(value)]
            number = label_numbers(values)
            own = [number[value] for value in values if value in number]
            if len(set(own)) > MAX_CLASSES and len(own) >= MOSTLY * len(values):
                numbers[column] = own
    return LabelColumns(dict(sorted(classes.items(), key=lambda item: unlikelihood(item[1]))), numbers)


def _is_of_patients(table: Table, patient: str, column: str) -> bool:
    """Tells whether at least half of the patients have one value in a column, unlike patches of both kinds."""
    values: dict[str, set[str]] = {}
    for owner, value in zip(table.texts[patient], table.texts[column], strict=True):
        if owner is not None and value is not None:
            values.setdefault(owner, set()).add(folded_label(value))
    return 2 * sum(len(own) == 1 for own in values.values()) >= len(values)


def choose_label(draft: Draft, table: Table, patient: str, label: str | None, besides: Collection[str]) -> None:
    """Writes the label and its classes, or its task, into a draft, and the other columns as comments.

    Args:
        draft: to write into.
        table: with the label.
        patient: its column of patients.
        label: the asked column; None takes the likeliest one of classes.
        besides: columns that are no label.

    Raises:
        InputError: the asked column has neither classes nor numbers, or none was asked for and none has classes.
    """
    columns = label_columns(table, patient, besides)
    for site in (name for name in table.texts if name != label and is_known(name, SITE_COLUMNS)):
        if len(columns.classes) > 1:
            columns.classes.pop(site, None)
        values = f"a value of {site} ({len(set(table.values(site)))} values)"
        draft.note("folds", f"`site: {site}` would keep all patients of {values} in one fold.")
    if label is None and not columns.classes:
        raise InputError(
            f"{table.path} has no column of 2 to 10 classes, but numbers: choose --label among "
            f"{', '.join(columns.numbers)} to predict one"
        )
    if label is not None and label not in columns:
        raise InputError(_no_label(table, label, columns))
    chosen = label or next(iter(columns.classes))
    if chosen in columns.classes:
        _write_classes(draft, chosen, columns.classes[chosen])
    else:
        draft.tree["cohort"] |= {"label": chosen, "task": "regression"}
    _note_columns(draft, chosen, columns)


def _no_label(table: Table, label: str, columns: LabelColumns) -> str:
    cure = f"choose --label among {', '.join([*columns.classes, *columns.numbers])}"
    if label not in table.texts:
        return f"{table.path} has no column {label!r}: {cure}"
    if label in fold_columns(table):
        return f"the column {label!r} of {table.path} says which patients train and which are tested: {cure}"
    found = len(set(table.values(label)))
    values = "one value" if found == 1 else f"{found:,} different values"
    return (
        f"the column {label!r} of {table.path} has {values}, which are neither 2 to {MAX_CLASSES} classes of patients "
        f"nor numbers: {cure}"
    )


def _write_classes(draft: Draft, label: str, counts: Counter[str]) -> None:
    cohort, chosen = draft.tree["cohort"], choose_classes(counts)
    cohort["label"] = label
    if len(chosen.names) == 2:
        cohort["negative"], cohort["positive"] = chosen.names
        if not chosen.certain:
            which = f"{cohort['positive']!r} and {cohort['negative']!r}"
            draft.note("cohort", f"CHECK: which of {which} is the positive class?")
    else:
        cohort["classes"] = list(chosen.names)
        in_order = "if they have no order, add `ordered: false`"
        if not chosen.certain:
            cohort["ordered"] = False
            in_order = "if they have an order, name them in it and remove `ordered: false`"
        draft.note("cohort", f"CHECK: {len(chosen.names)} classes, {', '.join(chosen.names)}: {in_order}")
    if chosen.left_out:
        values = ", ".join(
            f"{value} ({counts[value]} patient{'s' if counts[value] > 1 else ''})" for value in chosen.left_out
        )
        instead = ", in place of positive and negative," if len(chosen.names) == 2 else ""
        kept = f"cohort.classes{instead} keeps those that it names, in order"
        draft.note("cohort", f"CHECK: patients whose {label} is another are left out: {values}; {kept}")


def _note_columns(draft: Draft, chosen: str, columns: LabelColumns) -> None:
    others = [name for name in (*columns.classes, *columns.numbers) if name != chosen]
    more = ", ..." if len(others) > _SHOWN else ""
    among = f", chosen among {len(others) + 1} columns; --label takes another: {', '.join(others[:_SHOWN])}{more}"
    for name, counts in _first(columns.classes, chosen):
        what = f"{name} ({', '.join(f'{value} {count}' for value, count in counts.most_common())})"
        draft.note("cohort", f"Label: {what}{among if others else ''}" if name == chosen else f"Other label: {what}")
    for name, numbers in _first(columns.numbers, chosen):
        what = f"{name} ({len(numbers):,} numbers from {min(numbers):g} to {max(numbers):g})"
        asked = f"Label: {what}{among if others else ''}"
        draft.note("cohort", asked if name == chosen else f"Other label: {what}; with `task: regression`")


def _first(columns: Mapping[str, Any], chosen: str) -> list[tuple[str, Any]]:
    """Returns the chosen column and the first of the others, as many as are shown."""
    return sorted(columns.items(), key=lambda item: item[0] != chosen)[:_SHOWN]
