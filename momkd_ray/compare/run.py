"""Trains the models of a comparison as one Tune run and writes their leaderboard."""

from __future__ import annotations

from momkd_ray import storage
from momkd_ray.compare.entries import entries_of
from momkd_ray.compare.leaderboard import Leaderboard, build_leaderboard
from momkd_ray.compare.page import write_page
from momkd_ray.compare.tables import to_csv, to_latex, to_markdown
from momkd_ray.compare.training import train_entries
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
    searching = {entry.label: len(entry.trials) for entry in entries if entry.trials}
    tried = f"; {', '.join(searching)} try {max(searching.values())} settings in each" if searching else ""
    progress.info(
        f"{len({entry.label for entry in entries})} models, {len(entries)} with their seeds, "
        f"in {len(inputs.plan.folds)} folds each{tried}"
    )
    trained = train_entries(inputs, entries, progress, own_cluster=own_cluster)
    leaderboard = build_leaderboard(inputs, trained)
    run_dir = config.run.dir
    storage.write_json(inputs.directory.leaderboard, leaderboard.to_json())
    storage.write_text(storage.join(run_dir, "leaderboard.csv"), to_csv(leaderboard))
    storage.write_text(storage.join(run_dir, "leaderboard.md"), to_markdown(leaderboard))
    storage.write_text(storage.join(run_dir, "leaderboard.tex"), to_latex(leaderboard))
    write_page(run_dir, config.cohort.label, leaderboard)
    return leaderboard
