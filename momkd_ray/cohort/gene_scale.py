"""Decides the scale of each family of gene columns: counts, logarithms, z-scores, copy numbers (method.md §1).

A family is what one modality wrote: the columns that share a tag in their names, such as `_cnv`, or all without one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from momkd_ray.cohort.gene_names import listed, setting_with
from momkd_ray.config.sections import OmicsConfig
from momkd_ray.errors import InputError

LINEAR_ABOVE = 50.0  # log2(x + 1) of an expression value stays below about 25, so a larger one is no logarithm
LOG2_BELOW = 25.0
FEW_PATIENTS = 8  # of fewer values, whole numbers or a range say nothing
FEW_COLUMNS = 12  # so many are named in a sentence
SMALL = 9  # copy numbers, as differences from two, and grades stay below
SAMPLE = 500  # columns of decimals that are looked at for what whole numbers mean among them

Scale = Literal["counts", "linear values", "logarithms", "scaled values", "copy numbers", "0 or 1", "shares"]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_TAG = (
    "cnv|cna|cn|gistic2?|mut|muts|mutations?|mutated|snvs?|rna|rnaseq|rna_seq|mrna|expr?|expression|gexp|tpm|fpkm|rpkm|"
)
_TAG += (
    "cpm|counts?|log2?|z|zscores?|rppa|prot|proteins?|proteome|phospho|meth|methylation|beta|mirna|fusions?|amp|del|loh"
)
_SUFFIX = re.compile(rf"[_.:| -](?P<tag>{_TAG})$", re.IGNORECASE)
_PREFIX = re.compile(rf"^(?P<tag>{_TAG})[_.:|]", re.IGNORECASE)
_SCALES_WORDS: dict[Scale, str] = {
    "counts": "counts, so log2(x + 1)",
    "linear values": "counts or TPM, so log2(x + 1)",
    "logarithms": "logarithms already",
    "scaled values": "already scaled, so no logarithm",
    "copy numbers": "copy numbers, so no logarithm",
    "0 or 1": "absent or present, so no logarithm",
    "shares": "shares, so no logarithm",
}


@dataclass(frozen=True)
class GeneFamily:
    """Columns of one modality and the scale of their values.

    Attributes:
        name: what their names share, such as `..._cnv`; '' for columns without a tag.
        genes: the columns.
        scale: as which the values are taken.
        low, high: the smallest and the largest value; 0 if all are blank.
    """

    name: str
    genes: tuple[str, ...]
    scale: Scale
    low: float
    high: float

    @property
    def log(self) -> bool:
        """Whether log2(x + 1) is taken of the values."""
        return self.scale in ("counts", "linear values")

    def sentence(self, low: float | None = None, high: float | None = None) -> str:
        """Describes the scale and its consequence; `low` and `high` replace the family's own."""
        low, high = self.low if low is None else low, self.high if high is None else high
        whose = f"{len(self.genes):,} columns '{self.name}': " if self.name else ""
        return f"{whose}values from {low:.3g} to {high:.3g} are taken as {_SCALES_WORDS[self.scale]}"


def tag_of(gene: str) -> str:
    """Returns the part of a column's name that tells its modality, as `..._cnv` or `cnv_...`; '' if there is none."""
    if found := _SUFFIX.search(gene):
        return f"...{found.group().lower()}"
    if found := _PREFIX.search(gene):
        return f"{found.group().lower()}..."
    return ""


def gene_families(
    omics: pd.DataFrame, settings: OmicsConfig | None = None, location: str = "the omics"
) -> tuple[GeneFamily, ...]:
    """Divides the columns into families and decides the scale of each.

    Args:
        omics: (n, genes), NaN where blank.
        settings: the configuration's `omics` section: `scale`, and the columns that `keep` makes families of their own.
        location: named in messages.

    Raises:
        InputError: a few columns of a family are on another scale than the others.
    """
    settings = settings or OmicsConfig()
    columns = _Columns.of(omics)
    if settings.scale != "auto":
        chosen: Scale = "linear values" if settings.scale == "linear" else "scaled values"
        return (columns.family("", np.ones(len(columns.names), bool), chosen),)
    own = set(listed(settings.keep, columns.names))
    kept = np.asarray([name in own for name in columns.names], bool)
    tags = np.asarray([tag_of(name) for name in columns.names], object)
    families: list[GeneFamily] = []
    for tag in sorted(set(tags[~kept])):
        families += _families_of_tag(columns, tag, (tags == tag) & ~kept, settings, location)
    own_scale = columns.nonnegative & (columns.high > LINEAR_ABOVE)
    for group in (kept & own_scale, kept & ~own_scale):
        if group.any():
            families.append(columns.family("omics.keep", group, _scale_of(columns, group)))
    return tuple(families)


@dataclass(frozen=True)
class _Columns:
    """What is known of each column (G): its range, and whether it varies and holds whole numbers only."""

    names: list[str]
    low: Values
    high: Values
    whole: Mask
    others_than_zero: npt.NDArray[np.int64]
    values_NG: Values
    patients: int

    @classmethod
    def of(cls, omics: pd.DataFrame) -> _Columns:
        values_NG = omics.to_numpy()
        blank_NG = np.isnan(values_NG)
        low, high = (np.nan_to_num(reduce(values_NG, axis=0), nan=0) for reduce in (np.fmin.reduce, np.fmax.reduce))
        whole = (blank_NG | (values_NG == np.rint(values_NG))).all(axis=0)
        others = np.count_nonzero(np.nan_to_num(values_NG), axis=0)
        return cls([str(name) for name in omics.columns], low, high, whole, others, values_NG, len(omics))

    def conspicuous(self, varying: Mask, decimal: Mask) -> Mask:
        """Returns the columns of whole numbers that cannot belong to the columns of decimals.

        Whole numbers are natural among decimals if those are logarithms of counts (0, 1 and 2 then stand for rarely
        expressed genes) or estimated counts, or if they are so coarsely rounded that chance makes them.
        """
        some = np.flatnonzero(decimal)[:SAMPLE]
        values_NG = self.values_NG[:, some].astype(np.float64)
        counts_NG = np.exp2(np.clip(values_NG, -LOG2_BELOW, LOG2_BELOW)) - 1
        off_NG = np.abs(counts_NG - np.rint(counts_NG))
        of_counts = (off_NG <= 1e-3 * np.maximum(1, np.abs(counts_NG))) | np.isnan(values_NG)
        asked = ~np.isnan(values_NG) & (values_NG != 0)
        by_chance = ((values_NG == np.rint(values_NG)) & asked).sum() / max(1, asked.sum())
        if of_counts.all(axis=0).mean() > 0.05 or by_chance > 0.3:
            return np.zeros(len(varying), bool)
        chance = np.power(max(by_chance, 0.01), self.others_than_zero) * len(varying)
        return varying & self.whole & (chance < 0.001)

    @property
    def nonnegative(self) -> Mask:
        return self.low >= 0

    @property
    def varying(self) -> Mask:
        return self.high > self.low

    def family(self, name: str, mask: Mask, scale: Scale) -> GeneFamily:
        genes = tuple(self.names[column] for column in np.flatnonzero(mask))
        low, high = (float(self.low[mask].min()), float(self.high[mask].max())) if genes else (0.0, 0.0)
        return GeneFamily(name, genes, scale, low, high)

    def some_of(self, mask: Mask) -> list[str]:
        return [self.names[column] for column in np.flatnonzero(mask)]


def _families_of_tag(
    columns: _Columns, tag: str, members: Mask, settings: OmicsConfig, location: str
) -> list[GeneFamily]:
    """Returns the family of a tag, and families of whole numbers among decimals that are clearly of their own kind."""
    families = []
    varying = members & columns.varying
    decimal = varying & ~columns.whole
    if columns.patients >= FEW_PATIENTS and decimal.any() and decimal.sum() * 2 >= varying.sum():
        whole = columns.conspicuous(varying, decimal)
        small = whole & (np.maximum(-columns.low, columns.high) <= SMALL)
        flags = whole & columns.nonnegative & (columns.high <= 1)
        if small.sum() > 1 and (columns.low[small] < 0).any():
            families.append(columns.family(f"{tag}, whole numbers" if tag else "whole numbers", small, "copy numbers"))
            members, whole = members & ~small, whole & ~small
        elif flags.sum() > FEW_COLUMNS:
            families.append(columns.family(f"{tag}, 0 and 1" if tag else "0 and 1", flags, "0 or 1"))
            members, whole = members & ~flags, whole & ~flags
        if whole.any():
            _refuse(columns, whole, members, "whole numbers", "decimals", settings, location)
        varying = members & columns.varying
    _refuse_two_scales(columns, varying, settings, location)
    return [columns.family(tag, members, _scale_of(columns, members)), *families] if members.any() else families


def _refuse_two_scales(columns: _Columns, varying: Mask, settings: OmicsConfig, location: str) -> None:
    """Raises if a family holds columns that are no logarithms or z-scores beside others that are."""
    large = varying & columns.nonnegative & (columns.high > LINEAR_ABOVE)
    negative = varying & ~columns.nonnegative
    if columns.patients < FEW_PATIENTS or not large.any():
        return
    if negative.any():
        if np.median(columns.high[negative]) > LINEAR_ABOVE:  # linear values with a background subtracted
            return
        few, what, other = (large, "values above 50", "values below 0")
        if negative.sum() < large.sum():
            few, what, other = negative, other, what
        _refuse(columns, few, varying, what, other, settings, location)
    rest = varying & ~large
    decimals = (~columns.whole[rest]).mean() > 0.5 if rest.any() else False
    if decimals and columns.high[rest].max() <= LOG2_BELOW and large.sum() * 3 < varying.sum():
        _refuse(columns, large, varying, "values above 50", "what may be logarithms", settings, location)


def _refuse(
    columns: _Columns, few: Mask, members: Mask, what: str, other: str, settings: OmicsConfig, location: str
) -> None:
    names = columns.some_of(few)
    span = f"{float(columns.low[few].min()):.3g} to {float(columns.high[few].max()):.3g}"
    others = f"the other {int(members.sum()) - len(names):,} hold {other}"
    if len(names) > FEW_COLUMNS:
        shown = ", ".join(f"'{name}'" for name in names[:5])
        raise InputError(
            f"{location}: {len(names):,} columns, such as {shown}, hold {what} ({span}) but {others}: mark the columns "
            "of another kind in their names (such as GENE_cnv), leave them out by omics.leave_out, which takes "
            "patterns, or take all values as they are by 'omics.scale: scaled'"
        )
    shown = ", ".join(f"'{name}'" for name in names)
    column, hold, they, them, their = (
        ("column", "holds", "it is no gene", "it", "its")
        if len(names) == 1
        else ("columns", "hold", "they are no genes", "them", "their")
    )
    raise InputError(
        f"{location}: {column} {shown} {hold} {what} ({span}) but {others}: set "
        f"{setting_with('omics.leave_out', settings.leave_out, names)} if {they}, or "
        f"{setting_with('omics.keep', settings.keep, names)} to learn from {them} on a scale of {their} own"
    )


def _scale_of(columns: _Columns, mask: Mask) -> Scale:
    """Names the scale of columns of one kind."""
    varying = mask & columns.varying if (mask & columns.varying).any() else mask
    low, high = float(columns.low[mask].min()), float(columns.high[mask].max())
    whole = bool(columns.whole[varying].all())
    if low < 0:
        return "copy numbers" if whole and max(-low, high) <= SMALL else "scaled values"
    if high > LINEAR_ABOVE:
        return "counts" if whole else "linear values"
    if whole and high <= 1:
        return "0 or 1"
    return "shares" if not whole and high <= 1 else "logarithms"
