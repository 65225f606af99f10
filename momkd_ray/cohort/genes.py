"""Selects and scales genes on the training patients of one fold (docs/method.md §1)."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import numpy.typing as npt
import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.gene_names import without_version
from momkd_ray.cohort.gene_scale import GeneFamily, gene_families
from momkd_ray.cohort.table_files import first_duplicate, read_content
from momkd_ray.config.sections import GENE_SELECTIONS, GenesConfig
from momkd_ray.errors import InputError

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.intp]
Choice = tuple[Positions, Doubles, str]
"""Positions of the chosen genes among the varying ones, their importance, and a clause that describes the choice."""

MOST_GAINS = 32
"""Gains of xgboost that a process remembers: those of the folds, with and without their validation patients."""

_GAINS: dict[bytes, Doubles] = {}  # digest of values, classes and seed -> gain of each gene; oldest first


@dataclass(frozen=True, eq=False)
class GeneTransform:
    """The chosen genes, most important first, and the scaling of their values.

    Attributes:
        genes: their names.
        importance, mean, sd: (G,) float64; mean and standard deviation over training patients, after the logarithm.
            A blank value counts as the mean of those that are not blank.
        log: (G,) whether log2(x + 1) is applied first.
        method: `genes.select`.
        note: one sentence on the scale and the choice.
    """

    genes: tuple[str, ...]
    importance: Doubles
    mean: Doubles
    sd: Doubles
    log: Mask
    method: str
    note: str

    def apply(self, omics: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Scales the values of patients; returns (n, G) float32, 0 (the training patients' mean) for a blank value.

        Raises:
            InputError: a chosen gene is missing, or a value is infinite or, under the logarithm, negative.
        """
        missing = [gene for gene in self.genes if gene not in omics.columns]
        if missing:
            raise InputError(f"the omics lack {len(missing)} of the chosen genes: {_some(missing)}")
        values_NG = omics[list(self.genes)].to_numpy(np.float64)
        negative_NG = (values_NG < 0) & self.log
        bad = np.argwhere(np.isinf(values_NG) | negative_NG)
        if len(bad):
            row, column = bad[0]
            counts = "the training patients have counts, so it must not be negative"
            raise InputError(
                f"gene '{self.genes[column]}' of patient '{omics.index[row]}' is {values_NG[row, column]}: "
                + (counts if negative_NG[row, column] else "not a number")
            )
        scaled_NG = (_apply_log(values_NG, self.log) - self.mean) / self.sd
        return np.nan_to_num(scaled_NG, copy=False, nan=0).astype(np.float32)

    def save(self, location: str) -> None:
        """Writes a CSV file with one gene per row, whose numbers are read back exactly."""
        columns = {"gene": self.genes, "importance": self.importance, "mean": self.mean, "sd": self.sd}
        frame = pd.DataFrame(columns).assign(log=self.log, method=self.method, note=self.note)
        for name in ("importance", "mean", "sd"):
            frame[name] = [repr(float(value)) for value in frame[name]]
        storage.write_text(location, frame.to_csv(index=False, lineterminator="\n"))

    @classmethod
    def load(cls, location: str) -> GeneTransform:
        """Reads a file written by `save`.

        Raises:
            InputError: it does not exist or is not such a file.
        """
        text = read_content(location).decode()
        try:
            frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
            importance, mean, sd = (
                np.asarray([float(value) for value in frame[name]], np.float64) for name in ("importance", "mean", "sd")
            )
            first, log = frame.iloc[0], np.asarray(frame["log"] == "True", bool)
            genes = tuple(str(gene) for gene in frame["gene"])
            return cls(genes, importance, mean, sd, log, str(first["method"]), str(first["note"]))
        except (ValueError, KeyError, IndexError) as error:
            raise InputError(f"{location} is not a table of chosen genes written by this program") from error


def fit_genes(
    omics_train: pd.DataFrame,
    y_train: Integers,
    genes: GenesConfig,
    seed: int,
    families: Sequence[GeneFamily] | None = None,
) -> GeneTransform:
    """Selects and scales genes on a fold's training patients.

    Blank values count as the gene's mean over the training patients, after the logarithm. Genes that do not vary among
    them are never chosen. If `genes.n` exceeds the number of varying genes, all are chosen; `all` and a list of genes
    ignore it.

    Args:
        omics_train: (n, all genes), training patients only; NaN where blank.
        y_train: class of each.
        genes: the configuration's `genes` section.
        seed: of xgboost.
        families: the columns by scale, as the omics were read; None to decide it by these patients.

    Raises:
        InputError: one class only, no gene that varies, an unknown method, or a listed gene is missing.
    """
    if len(np.unique(y_train)) < 2:
        raise InputError("the training patients with omics are all of one class: genes cannot be chosen on them")
    values_NA = omics_train.to_numpy(np.float64)
    if np.isinf(values_NA).any():
        raise InputError("the omics of the training patients hold infinite values")
    families = gene_families(omics_train) if families is None else families
    names = [str(name) for name in omics_train.columns]
    logged = {name for family in families if family.log for name in family.genes}
    log_A = np.asarray([name in logged for name in names], bool)
    if (values_NA[:, log_A] < 0).any():
        raise InputError("genes whose values are taken as counts have negative ones: set omics.scale to scaled")
    values_NA = _apply_log(values_NA, log_A)
    blanks = _fill_blanks(values_NA)
    sd_A = values_NA.std(axis=0)
    varying = np.flatnonzero((values_NA.max(axis=0) > values_NA.min(axis=0)) & (sd_A > 0))
    if not len(varying):
        raise InputError("no gene varies among the training patients")
    order, importance, choice = _choose(genes, names, varying, values_NA[:, varying], y_train, seed)
    chosen = varying[order]
    constant = len(names) - len(varying)
    note = f"{_scales(omics_train, families)}; {choice}; "
    note += f"{constant} of {len(names)} genes do not vary among the training patients"
    note += f"; {blanks:,} blank values are filled with their gene's mean" if blanks else ""
    return GeneTransform(
        genes=tuple(names[column] for column in chosen),
        importance=importance,
        mean=values_NA[:, chosen].mean(axis=0),
        sd=sd_A[chosen],
        log=log_A[chosen],
        method=genes.select,
        note=note[:1].upper() + note[1:] + ".",
    )


def _scales(omics: pd.DataFrame, families: Sequence[GeneFamily]) -> str:
    """Describes the scale of each family by the range of these patients' values."""
    sentences = []
    for family in families:
        values_NF = omics[list(family.genes)].to_numpy()
        low, high = float(np.fmin.reduce(values_NF, axis=None)), float(np.fmax.reduce(values_NF, axis=None))
        sentences.append(family.sentence(low, high))
    return ", ".join(sentences)


def _apply_log(values_NG: Doubles, log_G: Mask) -> Doubles:
    """Takes log2(x + 1) of the columns that `log_G` marks."""
    result = values_NG.copy()
    result[:, log_G] = np.log2(values_NG[:, log_G] + 1)
    return result


def _fill_blanks(values_NG: Doubles) -> int:
    """Replaces NaN by its column's mean, in place, 0 in a column without values; returns their number."""
    blank_NG = np.isnan(values_NG)
    blanks = int(blank_NG.sum())
    if blanks:
        present_G = (~blank_NG).sum(axis=0)
        mean_G = np.where(blank_NG, 0, values_NG).sum(axis=0) / np.maximum(present_G, 1)
        # so that rounding makes no gene vary that does not
        mean_G = np.clip(mean_G, np.fmin.reduce(values_NG, axis=0), np.fmax.reduce(values_NG, axis=0))
        mean_G = np.nan_to_num(mean_G, nan=0)
        values_NG[blank_NG] = np.broadcast_to(mean_G, values_NG.shape)[blank_NG]
    return blanks


def _choose(
    settings: GenesConfig, names: list[str], varying: Positions, values_NU: Doubles, y_N: Integers, seed: int
) -> Choice:
    """Selects genes among the varying ones, whose values are `values_NU`."""
    anova_U = _anova(values_NU, y_N)
    count = min(settings.n, len(varying))
    if settings.select == "xgboost":
        gain_U = _xgboost_gain(values_NU, y_N, seed)
        order = np.lexsort((-anova_U, -gain_U))[:count]
        filled = int((gain_U[order] == 0).sum())
        clause = f"{count} genes by xgboost gain, of which {filled} with no gain were filled in by their ANOVA F"
        return order, gain_U[order], clause
    if settings.select == "anova":
        order = np.argsort(-anova_U, kind="stable")[:count]
        return order, anova_U[order], f"{count} genes by ANOVA F"
    if settings.select == "variance":
        variance_U = values_NU.var(axis=0)
        order = np.argsort(-variance_U, kind="stable")[:count]
        return order, variance_U[order], f"{count} genes by variance"
    if settings.select == "all":
        return (
            np.arange(len(varying)),
            anova_U,
            f"all {len(varying)} genes that vary, their importance the ANOVA F",
        )
    return _listed(settings.select, names, varying, anova_U)


def _anova(values_NU: Doubles, y_N: Integers) -> Doubles:
    from sklearn.feature_selection import f_classif

    with np.errstate(divide="ignore"):  # F is infinite where a gene separates the classes without any spread
        return np.asarray(f_classif(values_NU, y_N)[0], np.float64)


def _xgboost_gain(values_NU: Doubles, y_N: Integers, seed: int) -> Doubles:
    """Computes the mean gain of each gene over boosted trees, normalised to sum to one.

    It does not depend on the number of threads: gradients have single precision and are summed in double, which is
    exact in any order, and among equal splits the gene with the lower index is taken.

    The settings of a search, and the seeds and models of a comparison, choose from the same patients of a fold, often
    in one process, which remembers what it has computed.
    """
    single_NU = np.ascontiguousarray(values_NU, np.float32)
    digest = hashlib.sha256(repr((single_NU.shape, y_N.tolist(), seed)).encode())
    digest.update(single_NU.data)
    key = digest.digest()
    if key not in _GAINS:
        while len(_GAINS) >= MOST_GAINS:
            del _GAINS[next(iter(_GAINS))]
        _GAINS[key] = _fit_xgboost(single_NU, y_N, seed)
    return _GAINS[key].copy()


def _fit_xgboost(values_NU: npt.NDArray[np.float32], y_N: Integers, seed: int) -> Doubles:
    from xgboost import XGBClassifier

    model = XGBClassifier(
        n_estimators=100,
        max_depth=4,
        learning_rate=0.1,
        colsample_bytree=0.3,
        tree_method="hist",
        max_bin=16,
        importance_type="gain",
        random_state=seed,
    )
    model.fit(values_NU, y_N)
    return np.asarray(model.feature_importances_, np.float64)


def _listed(path: str, names: list[str], varying: Positions, anova_U: Doubles) -> Choice:
    """Selects the genes of a list, in its order, without those that do not vary."""
    present = set(names)
    wanted = [gene if gene in present else without_version(gene) for gene in _read_gene_list(path)]
    absent = sorted(set(wanted) - present, key=wanted.index)
    if absent:
        raise InputError(f"{path} lists {len(absent)} genes that the omics do not have: {_some(absent)}")
    position = {names[column]: index for index, column in enumerate(varying)}
    order = np.asarray([position[gene] for gene in wanted if gene in position], np.intp)
    if not len(order):
        raise InputError(f"no gene of {path} varies among the training patients")
    clause = f"{len(order)} of the {len(wanted)} genes listed in {path}, their importance the ANOVA F"
    return order, anova_U[order], clause


def _read_gene_list(path: str) -> list[str]:
    """Reads a list of genes: one per line, or the column `gene` of a .csv or .tsv file with several columns."""
    if not storage.exists(path):
        near = difflib.get_close_matches(PurePath(path).name, GENE_SELECTIONS, n=1)
        hint = (
            f"did you mean '{near[0]}'?" if near else f"give one of {', '.join(GENE_SELECTIONS)} or the path of a list"
        )
        raise InputError(f"genes.select is '{path}', which is neither a method nor a file: {hint}")
    try:
        text = read_content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file of gene names: write one name per line") from error
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in row)]
    header = [cell.strip() for cell in rows[0]] if rows else []
    if "gene" in header:
        column, rows = header.index("gene"), rows[1:]
    elif any(len(row) > 1 for row in rows):
        raise InputError(f"{path} has several columns but none named 'gene'")
    else:
        column = 0
    genes = [row[column].strip() for row in rows if len(row) > column]
    if not genes:
        raise InputError(f"{path} lists no genes")
    twice = first_duplicate(genes)
    if twice is not None:
        raise InputError(f"{path} lists gene '{twice}' twice")
    return genes


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
