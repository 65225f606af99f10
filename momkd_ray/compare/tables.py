"""The leaderboard as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from momkd_ray.compare.conclusion import conclusions
from momkd_ray.compare.leaderboard import Difference, Headline, Interval, Leaderboard, Row
from momkd_ray.compare.scores import ScoreSummary
from momkd_ray.crossval.progress_callback import format_setting
from momkd_ray.statistics.delong import NO_VARIANCE
from momkd_ray.statistics.percentiles import NO_WIDTH
from momkd_ray.statistics.spread import mean_and_sd

HEADER = (
    "model",
    "AUC, mean ± sd",
    "pooled AUC [95 % interval]",
    "difference [95 % interval]",
    "p (bootstrap, Holm)",
    "p (DeLong, Holm)",
    "parameters",
    "training a fold",
    "predicting a bag",
    "peak memory",
)
NUMBER_HEADER = (
    "model",
    "Spearman, mean ± sd",
    "pooled Spearman [95 % interval]",
    "difference [95 % interval]",
    "p (bootstrap, Holm)",
    "pooled R2 [95 % interval]",
    "difference in R2",
    "pooled mean absolute error [95 % interval]",
    "difference in error",
    "macro AUC, mean ± sd",
    *HEADER[6:],
)
SETTINGS_TRIED = "settings tried"


def columns(leaderboard: Leaderboard) -> tuple[str, ...]:
    """Returns the names of the columns; that of settings is there if a model has a search."""
    header = NUMBER_HEADER if leaderboard.predicts_number else HEADER
    return (*header, *((SETTINGS_TRIED,) if _has_search(leaderboard) else ()))


def lines(leaderboard: Leaderboard) -> list[tuple[str, ...]]:
    """Formats all rows for people, in the order of `columns`."""
    return [
        (*_cells(row), *((str(row.settings_tried),) if _has_search(leaderboard) else ())) for row in leaderboard.rows
    ]


def _has_search(leaderboard: Leaderboard) -> bool:
    return any(row.search is not None for row in leaderboard.rows)


def _cells(row: Row) -> tuple[str, ...]:
    accuracy = _accuracy_cells(row) if row.scores is None else _number_cells(row, row.scores)
    memory = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**20:,.0f} MiB"
    return (
        row.label,
        *accuracy,
        f"{row.parameters:,.0f}",
        f"{row.training_seconds:.1f} s",
        f"{1000 * row.prediction_seconds_per_bag:.1f} ms",
        memory,
    )


def _number_cells(row: Row, scores: Mapping[str, ScoreSummary]) -> tuple[str, ...]:
    spearman = scores["spearman"]
    cells = [mean_and_sd(spearman.mean, spearman.sd)]
    for name, summary in scores.items():
        cells.append(_with_interval(summary.pooled, summary.interval))
        difference, to_reference = summary.difference, summary.difference_interval
        cells.append("reference" if difference is None else _with_interval(difference, to_reference, "+"))
        if name == "spearman":
            cells.append("" if difference is None else _p_cell(summary.p_holm))
    return (*cells, mean_and_sd(row.mean, row.sd))


def _accuracy_cells(row: Row) -> tuple[str, ...]:
    difference = row.difference
    compared: tuple[str, str, str] = ("reference", "", "")
    if difference is not None:
        compared = (
            _with_interval(difference.bootstrap, difference.bootstrap_interval, "+"),
            _p_cell(difference.bootstrap_p_holm),
            _delong_cell(difference),
        )
    return (
        mean_and_sd(row.mean, row.sd),
        _with_interval(row.pooled, row.interval),
        *compared,
    )


def _delong_cell(difference: Difference) -> str:
    """Formats DeLong's p-value; empty where DeLong is for no row of the table."""
    return "" if difference.delong is None else _p_cell(difference.delong_p_holm)


def _with_interval(value: float, interval: Interval | None, sign: str = "") -> str:
    """Formats a figure with its interval: `0.812 [0.744, 0.866]`, or `1.000 (no interval)`."""
    ends = "(no interval)" if interval is None else f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"
    return f"{value:{sign}.3f} {ends}"


def _p_cell(p: float | None) -> str:
    return "none" if p is None else f"{p:.3f}"


def footnotes(leaderboard: Leaderboard) -> list[str]:
    """Says in sentences what the columns hold."""
    seeds = sorted({seed for row in leaderboard.rows for seed in row.seeds})
    several = leaderboard.classes is not None
    of_classes = ", ".join(f"{count} {name}" for name, count in (leaderboard.classes or {}).items())
    if leaderboard.predicts_number:
        return [*_number_notes(leaderboard, of_classes, seeds), *_closing_notes(leaderboard)]
    notes = [
        f"{leaderboard.patients} patients, {of_classes or f'{leaderboard.positives} of them positive'}; "
        f"seeds {', '.join(map(str, seeds))}.",
        *(["AUCs are means over classes of each against the rest (macro)."] if several else []),
        "Mean and standard deviation of the test AUC are over folds and seeds. The pooled AUC is that of all folds' "
        "test patients together, averaged over seeds.",
        f"Differences are of pooled AUCs, to {leaderboard.reference}. Their intervals resample patients, paired "
        f"between models, and each model's seeds; DeLong's test {_delong_note(leaderboard)}. "
        "Models are not trained again on resampled patients. p-values are corrected by Holm over all rows.",
    ]
    return notes + _closing_notes(leaderboard)


def _delong_note(leaderboard: Leaderboard) -> str:
    """Says what DeLong's test is of, or why there is none."""
    if leaderboard.classes is not None:
        return "is for two classes only, so there is none here"
    fewest = min(leaderboard.positives, leaderboard.patients - leaderboard.positives)
    if fewest < 2:
        return f"takes two patients of each class, so there is none here, with {fewest} of one"
    differences = {row.label: row.difference for row in leaderboard.rows if row.difference is not None}
    without = [label for label, difference in differences.items() if difference.delong_p is None]
    none = f"; there is none of {', '.join(without)}, as {NO_VARIANCE}" if without else ""
    return f"is of the predictions averaged over seeds{none}"


def _number_notes(leaderboard: Leaderboard, of_classes: str, seeds: Sequence[int]) -> list[str]:
    return [
        f"{leaderboard.patients} patients with a number, in the quantile classes {of_classes}; seeds "
        f"{', '.join(map(str, seeds))}.",
        "Mean and standard deviation are of the test patients, over folds and seeds; a pooled metric is that of all "
        "folds' test patients together, averaged over seeds. The macro AUC is of the classes.",
        f"Differences are of pooled metrics, to {leaderboard.reference}; of the mean absolute error a smaller one is "
        "better. Their intervals resample patients, paired between models, and each model's seeds. Models are not "
        "trained again on resampled patients. p-values, of Spearman's correlation, are corrected by Holm over all "
        "rows; leaderboard.csv has the others.",
    ]


def _closing_notes(leaderboard: Leaderboard) -> list[str]:
    notes = _width_notes(leaderboard)
    notes += ["Times and memory are medians over folds and seeds, on whatever else the machine did at the time."]
    notes += [note for row in leaderboard.rows if (note := _search_note(row))]
    if leaderboard.diverged:
        notes.append(f"Not in the table, as they diverged in a fold: {', '.join(leaderboard.diverged)}.")
    return notes


def _width_notes(leaderboard: Leaderboard) -> list[str]:
    """Says why there is no interval, if a row lacks one."""
    figures: list[Headline | ScoreSummary] = [row.headline for row in leaderboard.rows]
    figures += [summary for row in leaderboard.rows for summary in (row.scores or {}).values()]
    intervals = [one.interval for one in figures]
    intervals += [one.difference_interval for one in figures if one.difference is not None]
    none = f"There is no interval, and no p-value of a difference, where {NO_WIDTH}, as of a perfect model."
    return [none] if None in intervals else []


def _search_note(row: Row) -> str:
    """Says which settings a model's folds chose; '' without a search."""
    if row.search is None:
        return ""
    counts = Counter(_plain_setting(choice["setting"]) for choice in row.search.chosen)
    told = "; ".join(f"{setting} ({count} of {counts.total()})" for setting, count in counts.most_common())
    return (
        f"{row.label} tried {row.search.tried} settings in each fold, drawn at random, and took the one with the "
        f"highest {row.search.criterion} on the fold's own inner validation patients: {told}. That took "
        f"{row.search.seconds:.1f} s a fold."
    )


def _plain_setting(setting: Mapping[str, Any]) -> str:
    return format_setting({k: f"{value:.3g}" if isinstance(value, float) else value for k, value in setting.items()})


def to_csv(leaderboard: Leaderboard) -> str:
    """Writes one line per model with all numbers at full precision."""
    of_rows = [_csv_line(row) for row in leaderboard.rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(of_rows[0]) if of_rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(of_rows)
    return stream.getvalue()


def _csv_line(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "label": row.label,
        "model": row.model,
        "own_values": json.dumps(dict(row.own)),
        "label_fraction": row.label_fraction,
        "omics_fraction": row.omics_fraction,
        "seeds": " ".join(map(str, row.seeds)),
        "auc_mean": row.mean,
        "auc_sd": row.sd,
        "auc_pooled": row.pooled,
        "auc_low": (row.interval or ("", ""))[0],
        "auc_high": (row.interval or ("", ""))[1],
    }
    for name, summary in (row.scores or {}).items():
        low, high = summary.difference_interval or ("", "")
        line |= {
            f"{name}_mean": summary.mean,
            f"{name}_sd": summary.sd,
            f"{name}_pooled": summary.pooled,
            f"{name}_low": (summary.interval or ("", ""))[0],
            f"{name}_high": (summary.interval or ("", ""))[1],
            f"{name}_difference": "" if summary.difference is None else summary.difference,
            f"{name}_difference_low": low,
            f"{name}_difference_high": high,
            f"{name}_p": "" if summary.p is None else summary.p,
            f"{name}_p_holm": "" if summary.p_holm is None else summary.p_holm,
        }
    d = row.difference
    no_ends = (None, None)
    by_delong: tuple[Any, ...] = ("",) * 5
    by_bootstrap = by_delong
    if d is not None:
        by_delong = (d.delong, *(d.delong_interval or no_ends), d.delong_p, d.delong_p_holm)
        by_bootstrap = (d.bootstrap, *(d.bootstrap_interval or no_ends), d.bootstrap_p, d.bootstrap_p_holm)
    for name, values in (("delong", by_delong), ("bootstrap", by_bootstrap)):
        line |= dict(zip((name + part for part in ("", "_low", "_high", "_p", "_p_holm")), values, strict=True))
    return line | {
        "settings_tried": row.settings_tried,
        "settings_chosen": json.dumps(row.search.chosen) if row.search else "",
        "parameters": int(row.parameters),
        "training_seconds": row.training_seconds,
        "prediction_seconds_per_bag": row.prediction_seconds_per_bag,
        "peak_memory_bytes": row.peak_memory_bytes or "",
    }


def to_markdown(leaderboard: Leaderboard) -> str:
    """Writes a table and its footnotes."""

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    header = columns(leaderboard)
    table = [line(header), "|" + "---|" * len(header), *map(line, lines(leaderboard))]
    notes = [*conclusions(leaderboard), *footnotes(leaderboard)]
    return "\n".join([*table, "", *(f"{note}  " for note in notes)]) + "\n"


_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$", "{": r"\{", "}": r"\}"}


def to_latex(leaderboard: Leaderboard) -> str:
    """Writes a `booktabs` table, whose caption holds the footnotes."""

    def line(values: Sequence[str]) -> str:
        return " & ".join("".join(_LATEX.get(c, c) for c in value) for value in values) + r" \\"

    caption = "".join(_LATEX.get(c, c) for c in " ".join(footnotes(leaderboard)))
    header, body = columns(leaderboard), [line(cells) for cells in lines(leaderboard)]
    begin = [
        r"\begin{table}",
        rf"\caption{{{caption}}}",
        r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
        r"\toprule",
    ]
    return (
        "\n".join([*begin, line(header), r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"
    )
