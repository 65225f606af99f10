"""The memory's part of the page: components in use, how alike they are, and which patches they hold."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd

from momkd_ray import storage
from momkd_ray.report import figures
from momkd_ray.report.drawings import Drawing
from momkd_ray.report.finished_run import FinishedRun
from momkd_ray.run.finished import read_finished

SUMMARY = ("fold", "class", "components", "in use", "cosine within the class", "largest cosine to another class")


def memory_drawings(run: FinishedRun, bundles: dict[int, Any]) -> dict[str, Drawing | None]:
    """Returns the drawing of use over training (None if unknown), and one of similarity for each fold's model."""
    found: dict[str, Drawing | None] = {"memory-use": figures.memory_use_figure(run.epochs, run.classes)}
    for fold, (components, _) in bundles.items():
        if components is not None:
            drawing = figures.memory_similarity_figure(fold, components, run.classes)
            found[drawing.name] = drawing
    return found


def memory_rows(run: FinishedRun, bundles: dict[int, Any]) -> list[list[str]]:
    """Summarises each fold's memory by class, in the columns of `SUMMARY`; use is that of the kept epoch."""
    kept = {fold["fold"]: fold["best_epoch"] for fold in run.figures["folds"]}
    rows = []
    for fold, (components_YKS, _) in bundles.items():
        if components_YKS is None:
            continue
        of_epoch = run.epochs[fold].set_index("epoch")
        for y, name in enumerate(run.classes):
            own_KS = components_YKS[y]
            others_NS = np.delete(components_YKS, y, axis=0).reshape(-1, own_KS.shape[1])
            column = f"memory_use_{y}"
            known = column in of_epoch.columns and kept[fold] in of_epoch.index
            use = float(of_epoch.loc[kept[fold], column]) if known else float("nan")
            pairs = (own_KS @ own_KS.T)[~np.eye(len(own_KS), dtype=bool)]
            rows.append(
                [
                    str(fold),
                    name,
                    str(len(own_KS)),
                    f"{100 * use:.0f} %" if np.isfinite(use) else "not recorded",
                    f"{pairs.mean():.2f}" if len(pairs) else "",
                    f"{(own_KS @ others_NS.T).max():.2f}",
                ]
            )
    return rows


def held_patches(run: FinishedRun) -> list[list[str]]:
    """Returns fold, class, component, share of its patches and slides from the run's heatmaps; empty without."""
    location = storage.join(run.directory.location, "heatmaps", "components.csv")
    if not storage.exists(location):
        return []
    table = read_finished(run.directory, location, lambda content: pd.read_csv(io.BytesIO(content)))
    named = ["model", "component_class", "component", "share", "slides"]
    if not set(named) <= set(table.columns):
        return []
    return [
        [str(model), str(of_class), str(component), f"{100 * share:.1f} %", str(slides)]
        for model, of_class, component, share, slides in table[named].itertuples(index=False)
    ]
