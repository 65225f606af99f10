"""The genes that teach: chosen and scaled on one fold's training patients, kept with the fold."""

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
# positions of the chosen genes among the usable ones, their importance, and a clause that says what was done
Choice = tuple[Positions, Doubles, str]


@dataclass(frozen=True, eq=False)
class GeneTransform:
    """The chosen genes, most important first, and how their values are scaled.

    importance, mean, sd: (G,) float64; mean and sd are those of the training patients, after the logarithm.
    log: whether log2(x + 1) comes first. note: one sentence on what was detected and chosen.
    """

    genes: tuple[str, ...]
    importance: Doubles
    mean: Doubles
    sd: Doubles
    log: bool
    method: str
    note: str

    def apply(self, omics: pd.DataFrame) -> npt.NDArray[np.float32]:
        """The scaled values (n, G) float32 of these patients.

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
        return ((_logged(values_NG, self.log) - self.mean) / self.sd).astype(np.float32)

    def save(self, location: str) -> None:
        """Write a CSV, one gene a row, whose numbers read back exactly."""
        columns = {"gene": self.genes, "importance": self.importance, "mean": self.mean, "sd": self.sd}
        frame = pd.DataFrame(columns).assign(log=self.log, method=self.method, note=self.note)
        for name in ("importance", "mean", "sd"):
            frame[name] = [repr(float(value)) for value in frame[name]]
        storage.write_text(location, frame.to_csv(index=False, lineterminator="\n"))

    @classmethod
    def load(cls, location: str) -> GeneTransform:
        """Read what `save` wrote.

        Raises:
            InputError: it is not there or is not such a file.
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
    """Choose and scale genes on the rows handed in (n, all genes), which must be training patients alone.

    Genes that do not vary among them are never chosen. A `genes.n` above the number left takes all of those;
    `all` and a list of genes do not look at it.

    Raises:
        InputError: one class only, no gene that varies, an unknown method, or a listed gene is missing.
    """
    if len(np.unique(y_train)) < 2:
        raise InputError("the training patients with omics are all of one class: genes cannot be chosen on them")
    values_NA = omics_train.to_numpy(np.float64)
    if not np.isfinite(values_NA).all():
        raise InputError("the omics of the training patients hold blank or infinite values")
    log, scale = _detect_scale(values_NA)
    values_NA = _logged(values_NA, log)
    names = [str(name) for name in omics_train.columns]
    sd_A = values_NA.std(axis=0)
    usable = np.flatnonzero((values_NA.max(axis=0) > values_NA.min(axis=0)) & (sd_A > 0))
    if not len(usable):
        raise InputError("no gene varies among the training patients")
    order, importance, choice = _choose(genes, names, usable, values_NA[:, usable], y_train, seed)
    chosen = usable[order]
    constant = len(names) - len(usable)
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
    """Whether to take the logarithm, and why."""
    low, high = float(values_NA.min()), float(values_NA.max())
    if low < 0:
        return False, f"values from {low:.3g} to {high:.3g} are taken as already scaled, so no logarithm"
    if high > COUNTS_ABOVE:
        return True, f"values from {low:.3g} to {high:.3g} are taken as counts, so log2(x + 1)"
    return False, f"values from {low:.3g} to {high:.3g} are taken as logarithms already"


def _logged(values: Doubles, log: bool) -> Doubles:
    return np.log2(values + 1) if log else values


def _choose(
    settings: GenesConfig, names: list[str], usable: Positions, values_NU: Doubles, y_N: Integers, seed: int
) -> Choice:
    """Choose among the usable columns, whose values these are."""
    anova_U = _anova(values_NU, y_N)
    count = min(settings.n, len(usable))
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
            np.arange(len(usable)),
            anova_U,
            f"all {len(usable)} genes that vary, their importance the ANOVA F",
        )
    return _listed(settings.select, names, usable, anova_U)


def _anova(values_NU: Doubles, y_N: Integers) -> Doubles:
    from sklearn.feature_selection import f_classif

    with np.errstate(divide="ignore"):  # F is infinite where a gene separates the classes without any spread
        return np.asarray(f_classif(values_NU, y_N)[0], np.float64)


def _xgboost_gain(values_NU: Doubles, y_N: Integers, seed: int) -> Doubles:
    """Mean gain of each gene over boosted trees, normalised to sum to one.

    The number of threads does not change it: gradients are of single precision and summed in double, which is exact in
    any order, and of equal splits the lower gene is taken.
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


def _listed(path: str, names: list[str], usable: Positions, anova_U: Doubles) -> Choice:
    """The genes of a list, in its order, less those that do not vary."""
    wanted = _read_gene_list(path)
    absent = sorted(set(wanted) - set(names), key=wanted.index)
    if absent:
        raise InputError(f"{path} lists {len(absent)} genes that the omics do not have: {_some(absent)}")
    position = {names[column]: index for index, column in enumerate(usable)}
    order = np.asarray([position[gene] for gene in wanted if gene in position], np.intp)
    if not len(order):
        raise InputError(f"no gene of {path} varies among the training patients")
    clause = f"{len(order)} of the {len(wanted)} genes listed in {path}, their importance the ANOVA F"
    return order, anova_U[order], clause


def _read_gene_list(path: str) -> list[str]:
    """One gene a line, or the column `gene` of a .csv or .tsv file with several columns."""
    if not storage.exists(path):
        near = difflib.get_close_matches(PurePath(path).name, GENE_SELECTIONS, n=1)
        hint = (
            f"did you mean '{near[0]}'?" if near else f"give one of {', '.join(GENE_SELECTIONS)} or the path of a list"
        )
        raise InputError(f"genes.select is '{path}', which is neither a method nor a file: {hint}")
    try:
        text = read_content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file of gene names: write one name a line") from error
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
