"""Trains the models of a comparison as one Tune run and writes what they come to."""

from __future__ import annotations

from dataclasses import replace

from momkd_ray import storage
from momkd_ray.compare.entries import entries_of
from momkd_ray.compare.leaderboard import Leaderboard, build_leaderboard
from momkd_ray.compare.page import write_page
from momkd_ray.compare.tables import to_csv, to_latex, to_markdown
from momkd_ray.crossval.cross_validate import train_folds
from momkd_ray.crossval.search import Search
from momkd_ray.progress import ProgressReporter
from momkd_ray.run.inputs import RunInputs


def compare_models(inputs: RunInputs, progress: ProgressReporter, *, own_cluster: bool) -> Leaderboard:
    """Trains every unfinished fold of every model, then writes the leaderboard into the run directory.

    Returns:
        The leaderboard.

    Raises:
        InputError: the comparison or the input of a fold is not valid.
        RunError: a fold failed more often than `cluster.max_failures`.
        StoppedError: the user stopped it.
    """
    config = inputs.config
    entries = entries_of(config)
    inputs = replace(inputs, setting_names=tuple(entry.folder for entry in entries))
    search = Search(config, [entry.settings for entry in entries])
    progress.info(
        f"{len({entry.label for entry in entries})} models, {len(entries)} with their seeds, "
        f"in {len(inputs.plan.folds)} folds each"
    )
    train_folds(inputs, inputs.plan.folds, progress, own_cluster=own_cluster, search=search)
    leaderboard = build_leaderboard(inputs, entries)
    run_dir = config.run.dir
    storage.write_json(inputs.directory.leaderboard, leaderboard.to_json())
    storage.write_text(storage.join(run_dir, "leaderboard.csv"), to_csv(leaderboard))
    storage.write_text(storage.join(run_dir, "leaderboard.md"), to_markdown(leaderboard))
    storage.write_text(storage.join(run_dir, "leaderboard.tex"), to_latex(leaderboard))
    write_page(run_dir, config.cohort.label, leaderboard)
    return leaderboard
