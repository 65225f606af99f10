"""Leaves out the columns of the omics that are no genes, by the configuration or by what they hold."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from momkd_ray.cohort.cell_numbers import Mask
from momkd_ray.cohort.gene_names import listed
from momkd_ray.cohort.gene_scale import FEW_PATIENTS
from momkd_ray.cohort.gene_tables import GeneTable
from momkd_ray.cohort.no_genes import Label, no_genes
from momkd_ray.cohort.understood import Understood
from momkd_ray.config.sections import OmicsConfig
from momkd_ray.errors import InputError

_NAMED = 8  # columns of one kind that are named


def used_columns(
    table: GeneTable,
    patients: Sequence[str],
    location: str,
    settings: OmicsConfig,
    label: Label,
    understood: list[Understood],
) -> GeneTable:
    """Returns the table without the columns that are no genes, and tells which they are.

    Args:
        table: as read.
        patients: (S,) of its samples.
        location: of the table.
        settings: the configuration's `omics` section.
        label: what is to be predicted.
        understood: receives what is left out.

    Raises:
        InputError: `omics.leave_out` or `omics.keep` names what is not there, or no gene is left.
    """
    _check_names("leave_out", settings.leave_out, [*table.genes, *table.all_samples], location)
    _check_names("keep", settings.keep, table.genes, location)
    unwanted = set(listed(settings.leave_out, table.genes))
    if unwanted:
        what = f"{_columns(len(unwanted))} left out by omics.leave_out: {_names(sorted(unwanted))}"
        understood.append(Understood(location, "columns", what, len(unwanted)))
        table = _without(table, unwanted)
    texts = _columns_of_text(table)
    if len(texts) * 2 > len(table.genes):
        name, text = next(iter(texts.items()))
        raise InputError(
            f"{location}: {len(texts):,} of the {len(table.genes):,} columns hold text instead of numbers, such as "
            f"'{text}' in '{name}': write numbers with a decimal point and blanks as NA"
        )
    values = pd.DataFrame(table.values_SG, index=list(patients), columns=table.genes)
    found = no_genes(values, table.row_numbers, label)
    for name, text in texts.items():
        found.setdefault(name, f"holds text such as '{text}'")
    kept = set(listed(settings.keep, table.genes)) - texts.keys()
    found = {name: what for name, what in found.items() if name not in kept}
    if not found:
        return table
    understood.append(Understood(location, "columns", _on_left_out(found), len(found)))
    if len(found) == len(table.genes):
        raise InputError(f"{location} has no gene columns: {_on_left_out(found)}")
    return _without(table, set(found))


def _columns_of_text(table: GeneTable) -> dict[str, str]:
    """Returns the columns that hold text and no number, or in 8 or more rows more texts than numbers, with a text."""
    if table.words_SG is None or not len(table.samples):
        return {}
    words_G = table.words_SG.sum(axis=0)
    numbers_G = (~np.isnan(table.values_SG)).sum(axis=0)
    examples: dict[str, str] = {}
    for (_, gene), word in table.words.items():
        examples.setdefault(gene, word)
    enough = len(table.samples) >= FEW_PATIENTS
    text_G = (words_G > 0) & ((words_G > numbers_G) if enough else (numbers_G == 0))
    return {table.genes[g]: examples.get(table.genes[g], "...") for g in np.flatnonzero(text_G)}


def _without(table: GeneTable, names: set[str]) -> GeneTable:
    kept: Mask = np.asarray([name not in names for name in table.genes], bool)
    return replace(
        table,
        genes=[name for name in table.genes if name not in names],
        values_SG=table.values_SG[:, kept],
        words_SG=None if table.words_SG is None else table.words_SG[:, kept],
    )


def _check_names(key: str, entries: Sequence[str], names: Sequence[str], location: str) -> None:
    for entry in entries:
        if not listed([entry], names):
            near = difflib.get_close_matches(entry, names[:2000], n=1)
            hint = f"did you mean '{near[0]}'?" if near else "remove it from there"
            raise InputError(f"omics.{key} names '{entry}', which is nothing in {location}: {hint}")


def _on_left_out(found: dict[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, what in found.items():
        by_reason.setdefault(what, []).append(name)
    parts = [f"{_names(names)} {what if len(names) == 1 else _plural(what)}" for what, names in by_reason.items()]
    return (
        f"{_columns(len(found))} no gene{'' if len(found) == 1 else 's'} and left out: {', '.join(parts)} "
        "(omics.keep would use them)"
    )


def _plural(what: str) -> str:
    verb, _, rest = what.partition(" ")
    return f"{ {'has': 'have', 'is': 'are', 'counts': 'count', 'holds': 'hold', 'lacks': 'lack'}[verb] } {rest}"


def _columns(n: int) -> str:
    return "1 column is" if n == 1 else f"{n:,} columns are"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else "")
