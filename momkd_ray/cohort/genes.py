"""Selects and scales genes on the training patients of one fold (docs/method.md §1)."""

from __future__ import annotations

import csv
import difflib
import io
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
import numpy.typing as npt
import pandas as pd

from momkd_ray import storage
from momkd_ray.cohort.table_files import first_duplicate, read_content
from momkd_ray.config.sections import GENE_SELECTIONS, GenesConfig
from momkd_ray.errors import InputError

COUNTS_ABOVE = 50.0  # log2(x + 1) of an expression value stays below about 25, so a larger one is no logarithm


Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]
Choice = tuple[Positions, Doubles, str]
"""Positions of the chosen genes among the varying ones, their importance, and a clause that describes the choice."""


@dataclass(frozen=True, eq=False)
class GeneTransform:
    """The chosen genes, most important first, and the scaling of their values.

    Attributes:
        genes: their names.
        importance, mean, sd: (G,) float64; mean and standard deviation over training patients, after the logarithm.
        log: whether log2(x + 1) is applied first.
        method: `genes.select`.
        note: one sentence on the detected scale and the choice.
    """

    genes: tuple[str, ...]
    importance: Doubles
    mean: Doubles
    sd: Doubles
    log: bool
    method: str
    note: str

    def apply(self, omics: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Scales the values of patients; returns (n, G) float32.

        Raises:
            InputError: a chosen gene is missing, or a value is not finite or, under the logarithm, negative.
        """
        missing = [gene for gene in self.genes if gene not in omics.columns]
        if missing:
            raise InputError(f"the omics lack {len(missing)} of the chosen genes: {_some(missing)}")
        values_NG = omics[list(self.genes)].to_numpy(np.float64)
        bad = np.argwhere(~np.isfinite(values_NG) | (self.log & (values_NG < 0)))
        if len(bad):
            row, column = bad[0]
            raise InputError(
                f"gene '{self.genes[column]}' of patient '{omics.index[row]}' is {values_NG[row, column]}: "
                + ("the training patients have counts, so it must not be negative" if self.log else "not a number")
            )
        return ((_apply_log(values_NG, self.log) - self.mean) / self.sd).astype(np.float32)

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
            first = frame.iloc[0]
            genes = tuple(str(gene) for gene in frame["gene"])
            return cls(genes, importance, mean, sd, first["log"] == "True", str(first["method"]), str(first["note"]))
        except (ValueError, KeyError, IndexError) as error:
            raise InputError(f"{location} is not a table of chosen genes written by this program") from error


def fit_genes(omics_train: pd.DataFrame, y_train: Integers, genes: GenesConfig, seed: int) -> GeneTransform:
    """Selects and scales genes on a fold's training patients.

    Genes that do not vary among them are never chosen. If `genes.n` exceeds the number of varying genes, all are
    chosen; `all` and a list of genes ignore it.

    Args:
        omics_train: (n, all genes), training patients only.
        y_train: class of each.
        genes: the configuration's `genes` section.
        seed: of xgboost.

    Raises:
        InputError: one class only, no gene that varies, an unknown method, or a listed gene is missing.
    """
    if len(np.unique(y_train)) < 2:
        raise InputError("the training patients with omics are all of one class: genes cannot be chosen on them")
    values_NA = omics_train.to_numpy(np.float64)
    if not np.isfinite(values_NA).all():
        raise InputError("the omics of the training patients hold blank or infinite values")
    log, scale = _detect_scale(values_NA)
    values_NA = _apply_log(values_NA, log)
    names = [str(name) for name in omics_train.columns]
    sd_A = values_NA.std(axis=0)
    varying = np.flatnonzero((values_NA.max(axis=0) > values_NA.min(axis=0)) & (sd_A > 0))
    if not len(varying):
        raise InputError("no gene varies among the training patients")
    order, importance, choice = _choose(genes, names, varying, values_NA[:, varying], y_train, seed)
    chosen = varying[order]
    constant = len(names) - len(varying)
    note = f"{scale}; {choice}; {constant} of {len(names)} genes do not vary among the training patients"
    return GeneTransform(
        genes=tuple(names[column] for column in chosen),
        importance=importance,
        mean=values_NA[:, chosen].mean(axis=0),
        sd=sd_A[chosen],
        log=log,
        method=genes.select,
        note=note[:1].upper() + note[1:] + ".",
    )


def _detect_scale(values_NA: Doubles) -> tuple[bool, str]:
    """Returns whether to take the logarithm, with the reason."""
    low, high = float(values_NA.min()), float(values_NA.max())
    if low < 0:
        return False, f"values from {low:.3g} to {high:.3g} are taken as already scaled, so no logarithm"
    if high > COUNTS_ABOVE:
        return True, f"values from {low:.3g} to {high:.3g} are taken as counts, so log2(x + 1)"
    return False, f"values from {low:.3g} to {high:.3g} are taken as logarithms already"


def _apply_log(values: Doubles, log: bool) -> Doubles:
    return np.log2(values + 1) if log else values


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
    """
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
    model.fit(values_NU.astype(np.float32), y_N)
    return np.asarray(model.feature_importances_, np.float64)


def _listed(path: str, names: list[str], varying: Positions, anova_U: Doubles) -> Choice:
    """Selects the genes of a list, in its order, without those that do not vary."""
    wanted = _read_gene_list(path)
    absent = sorted(set(wanted) - set(names), key=wanted.index)
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
