"""The statistics of an evaluation as tables: for CSV files, the page and the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from momkd_ray.statistics.delong import NO_VARIANCE

MEASURES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "accuracy": "accuracy",
    "lr_positive": "likelihood ratio of a positive call",
    "lr_negative": "likelihood ratio of a negative call",
}


def shown(value: float | None, interval: Any = None, digits: int = 3) -> str:
    """Formats a value with its interval: `0.812 (0.744 to 0.866)`."""
    if value is None:
        return "not defined"
    text = f"{value:.{digits}f}"
    return text if interval is None else f"{text} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def with_interval(value: float | None, interval: Any, digits: int = 3) -> str:
    """Formats a figure that may have no interval: as `shown`, or `1.000 (no interval)`."""
    text = shown(value, interval, digits)
    return text if value is None or interval is not None else f"{text} (no interval)"


def difference_text(test: Mapping[str, Any], reason: str) -> str:
    """Formats a difference of AUCs with its interval and p-value, or says why there are none.

    Args:
        test: `difference`, `interval` and `p`.
        reason: why there may be none, `NO_VARIANCE` by DeLong or `NO_WIDTH` by the bootstrap.
    """
    if test["p"] is None:
        return f"{shown(test['difference'])} (no interval and no p: {reason})"
    return f"{shown(test['difference'], test['interval'])}, p = {p_value(test['p'])}"


def heterogeneity(column: Mapping[str, Any]) -> str:
    """Says what the test of a column's levels found, or that there is none, and which levels are left out and why."""
    test = column["heterogeneity"]
    said = "no test of the heterogeneity of the AUC, which takes two levels"
    if test is not None:
        said = (
            f"heterogeneity of the AUC Q = {test['q']:.2f}, df {test['df']}, p = {p_value(test['p'])} "
            f"(Holm {p_value(test['p_holm'])}), I² {100 * test['i_squared']:.0f} %"
        )
    left_out = "; ".join(f"{one['level']} is left out: {one['reason']}" for one in column["not_tested"])
    return f"{said}; {left_out}" if left_out else said


def p_value(p: float) -> str:
    """Formats a p-value."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def performance_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulates every estimate: `group, measure, value, low, high, method`."""
    rows: list[tuple[Any, ...]] = []
    auc = evaluation["discrimination"]["auc"]
    rows.append(("discrimination", "AUC", auc["value"], *(auc["delong_interval"] or (None, None)), "DeLong"))
    rows.append(("discrimination", "AUC", auc["value"], *(auc["bootstrap_interval"] or (None, None)), "bootstrap"))
    ap = evaluation["discrimination"]["average_precision"]
    rows.append(
        ("discrimination", "average precision", ap["value"], *(ap["bootstrap_interval"] or (None, None)), "bootstrap")
    )
    for kind, own in evaluation["calibration"].items():
        group = f"calibration, {kind} probability"
        for name in ("intercept", "slope"):
            low, high = own[name]["interval"] or (None, None)
            rows.append((group, name, own[name]["value"], low, high, "logistic regression"))
        rows += [
            (group, name.replace("_", " "), own[name], None, None, "") for name in ("mean", "brier", "scaled_brier")
        ]
    for at in evaluation["decisions"]:
        rows.append((at["name"], "threshold", at["threshold"], None, None, ""))
        for name, title in MEASURES.items():
            low, high = at[name]["interval"] or (None, None)
            method = "Simel" if name.startswith("lr") else "Wilson"
            rows.append((at["name"], title, at[name]["value"], low, high, method))
        for other in at["at_prevalence"]:
            for name in ("ppv", "npv"):
                low, high = other[name]["interval"] or (None, None)
                title = f"{MEASURES[name]} at prevalence {other['prevalence']:.3g}"
                rows.append((at["name"], title, other[name]["value"], low, high, "Mercaldo"))
    for one in evaluation["on_this_cohort"]:
        name = f"{one['other']} at {one['fixed']} {one['at']:g}"
        rows.append(("chosen on this cohort", name, one["value"], *(one["interval"] or (None, None)), "bootstrap"))
    return pd.DataFrame(rows, columns=["group", "measure", "value", "low", "high", "method"])


def subgroup_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulates the subgroups, a row per level."""
    rows = []
    for one in evaluation["subgroups"]:
        test = one["heterogeneity"] or {}
        not_tested = {left_out["level"]: left_out["reason"] for left_out in one["not_tested"]}
        for level in one["levels"]:
            auc, se, sp = level["auc"], level["sensitivity"], level["specificity"]
            rows.append(
                {
                    "column": one["column"],
                    "level": level["level"],
                    "patients": level["patients"],
                    "positives": level["positives"],
                    "auc": auc["value"],
                    "auc_low": (auc["interval"] or [None])[0],
                    "auc_high": (auc["interval"] or [None])[-1],
                    "sensitivity": se["value"],
                    "sensitivity_low": (se["interval"] or [None])[0],
                    "sensitivity_high": (se["interval"] or [None])[-1],
                    "specificity": sp["value"],
                    "specificity_low": (sp["interval"] or [None])[0],
                    "specificity_high": (sp["interval"] or [None])[-1],
                    "mean_recalibrated_probability": level["predicted"],
                    "observed_share": level["observed"]["value"],
                    "heterogeneity_q": test.get("q"),
                    "heterogeneity_p": test.get("p"),
                    "heterogeneity_p_holm": test.get("p_holm"),
                    "not_tested": not_tested.get(level["level"]),
                }
            )
    return pd.DataFrame(rows)


def comparison_table(evaluation: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulates the comparisons with other predictions, a row per file."""
    rows = []
    for one in evaluation["comparisons"]:
        row = {"file": one["file"], "patients": one["patients"], "auc": one["auc"][0], "auc_other": one["auc"][1]}
        for key in ("delong", "bootstrap"):
            test = one[key]
            low, high = test["interval"] or (None, None)
            row |= {f"{key}_difference": test["difference"], f"{key}_low": low, f"{key}_high": high}
            row |= {f"{key}_p": test["p"], f"{key}_p_holm": test["p_holm"]}
        for key in ("sensitivity", "specificity"):
            row |= {f"{key}_{name}": value for name, value in one["calls"][key].items()}
        rows.append(row)
    return pd.DataFrame(rows)


def verdict(evaluation: Mapping[str, Any]) -> str:
    """Says in one sentence what the evaluation found."""
    negative, positive = evaluation["classes"]
    cohort, auc, at = evaluation["cohort"], evaluation["discrimination"]["auc"], evaluation["decisions"][0]
    if auc["delong_interval"] is None:
        chance = f"as {NO_VARIANCE}"
    else:
        chance = "no better than chance by its interval" if auc["delong_interval"][0] <= 0.5 else "better than chance"
    return (
        f"On {cohort['patients']:,} patients ({cohort['positives']:,} {positive}, {cohort['negatives']:,} {negative}) "
        f"the ensemble tells {evaluation['label']} {positive} from {negative} with an AUC of "
        f"{with_interval(auc['value'], auc['delong_interval'])}, {chance}; at its frozen threshold its sensitivity is "
        f"{shown(at['sensitivity']['value'], at['sensitivity']['interval'], 2)} and its specificity "
        f"{shown(at['specificity']['value'], at['specificity']['interval'], 2)}."
    )


def text_summary(evaluation: Mapping[str, Any]) -> str:
    """Formats the main metrics for a terminal."""
    auc = evaluation["discrimination"]["auc"]
    ap = evaluation["discrimination"]["average_precision"]
    lines = [
        verdict(evaluation),
        "",
        f"{'AUC (DeLong)':<36} {with_interval(auc['value'], auc['delong_interval'])}",
        f"{'AUC (bootstrap)':<36} {with_interval(auc['value'], auc['bootstrap_interval'])}",
        f"{'average precision':<36} {with_interval(ap['value'], ap['bootstrap_interval'])}",
    ]
    for kind, own in evaluation["calibration"].items():
        lines.append(
            f"{'calibration, ' + kind:<36} intercept {shown(own['intercept']['value'], None, 2)}, slope "
            f"{shown(own['slope']['value'], None, 2)}, Brier {own['brier']:.3f}"
        )
    frozen = evaluation["decisions"][0]
    lines.append(f"{'frozen threshold':<36} {frozen['threshold']:.3f}")
    lines += [
        f"  {title:<34} {shown(frozen[name]['value'], frozen[name]['interval'])}" for name, title in MEASURES.items()
    ]
    for other in frozen["at_prevalence"][1:]:
        lines.append(
            f"  {'PPV, NPV at prevalence ' + format(other['prevalence'], 'g'):<34} "
            f"{shown(other['ppv']['value'], other['ppv']['interval'])}, "
            f"{shown(other['npv']['value'], other['npv']['interval'])}"
        )
    for one in evaluation["comparisons"]:
        lines.append(f"AUC minus that of {one['file']}: {difference_text(one['delong'], NO_VARIANCE)}")
    return "\n".join(lines)
