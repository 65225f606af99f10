"""The sections that the pages of two and of several classes share: omics, memory, wrong patches, search, methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from momkd_ray import __version__
from momkd_ray.crossval.progress_callback import format_setting
from momkd_ray.report import figures
from momkd_ray.report.finished_run import FinishedRun
from momkd_ray.report.memory import SUMMARY, held_patches, memory_drawings, memory_rows
from momkd_ray.report.methods import MOST_GENES, bundles_of, gene_frequencies, gene_overlap, methods_block
from momkd_ray.report.omics import read_omics_gain
from momkd_ray.report.patients import flow_of
from momkd_ray.report.tripod import checklist
from momkd_ray.report.wrong_patches import review_patches


def shared_sections(run: FinishedRun, wrong: pd.DataFrame, site: str | None, compared: str | None) -> dict[str, Any]:
    """Collects what the shared sections show, their `drawings` included.

    Args:
        run: the finished run.
        wrong: `patient_id, fold, label, predicted` of the wrong calls, the most confident first.
        site: the column of sites, if one is known.
        compared: directory of a comparison that the user names.
    """
    bundles = bundles_of(run)
    cards = [card for _, card in bundles.values()]
    genes = gene_frequencies(run)
    review = review_patches(run, wrong)
    search = run.figures.get("search", {})
    drawings = memory_drawings(run, bundles)
    drawings["genes"] = figures.gene_figure(genes.head(MOST_GENES), len(run.genes)) if len(genes) else None
    drawings |= {slide.drawing.name: slide.drawing for slide in review.slides if slide.drawing is not None}
    return {
        "version": __version__,
        "run_dir": run.directory.location,
        "review": review,
        "few_validated": run.figures.get("few_validated", []),  # an earlier version did not write them
        "omics": {
            "gain": read_omics_gain(run.directory.location, compared),
            "used": bool(run.section("cohort").get("omics")),
            "chosen": len(genes),
            "always": int((genes["folds"] == len(run.genes)).sum()),
            "of": len(run.genes),
            "overlap": gene_overlap(run),
            "rows": _gene_rows(genes),
        },
        "memory": {
            "folds": [fold for fold, (components, _) in bundles.items() if components is not None],
            "header": SUMMARY,
            "rows": memory_rows(run, bundles),
            "held": held_patches(run),
        },
        "search": _search(search) if search else [],
        "searched_by": search.get("criterion", ""),
        "drawn_by": search.get("drawn_by"),
        "stopped_by": search.get("stopped_by"),
        "methods": methods_block(run, cards),
        "tripod": _tripod(run, cards, site),
        "configuration": run.configuration,
        "drawings": drawings,
    }


def _gene_rows(genes: pd.DataFrame) -> list[list[str]]:
    shown = genes.head(MOST_GENES)[["gene", "folds", "mean_importance"]]
    return [
        [str(gene), str(folds), f"{importance:.4f}" if np.isfinite(importance) else ""]
        for gene, folds, importance in shown.itertuples(index=False)
    ]


def _search(search: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a row for each setting: its mean validation figure or why there is none, and the folds that chose it."""
    stopped = {stop["setting"]: stop for stop in search.get("stopped", [])}
    rows = []
    for number, setting in enumerate(search["settings"]):
        by_fold = search["scores"][number]
        scores = [score for score in by_fold if score is not None]
        if stop := stopped.get(number):
            outcome = f"stopped after {stop['epoch']} epochs at {stop['score']:.3f}, median {stop['median']:.3f}"
        elif len(scores) < len(by_fold):
            n_diverged = len(by_fold) - len(scores)
            outcome = f"diverged in {n_diverged} fold{'' if n_diverged == 1 else 's'}"
        else:
            outcome = f"{np.mean(scores):.3f}"
        folds = ", ".join(fold for fold, choice in search["chosen"].items() if choice == number) or "none"
        rows.append({"setting": format_setting(setting), "outcome": outcome, "folds": folds})
    return rows


def _tripod(run: FinishedRun, cards: list[Any], site: str | None) -> list[tuple[str, str, str]]:
    steps = flow_of(run)
    encoders = sorted({card.encoder for card in cards if card.encoder})
    return checklist(
        {
            "patients": run.figures["counts"]["patients"],
            "folds": len(run.figures["folds"]),
            "label": run.label,
            "classes": run.classes,
            "number": run.predicts_number,
            "balanced": bool(run.section("train").get("balanced", True)),
            "encoder": ", ".join(encoders) or "the encoder is not recorded in the feature files",
            "several_sites": site is not None,
            "excluded": steps[0].patients - steps[-1].patients,
        }
    )
