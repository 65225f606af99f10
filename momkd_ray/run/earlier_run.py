"""What an earlier run has left in a run directory, and whether its configuration says the same as another."""

from __future__ import annotations

from typing import Any

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.config.sections import GENE_SELECTIONS
from momkd_ray.run.layout import FoldDirectory, RunDirectory

_SHOWN = 3  # keys in a message


def has_trained(directory: RunDirectory) -> bool:
    """Returns whether anything was trained: a checkpoint, an epoch, or a result of a fold or of the run."""
    results = (directory.metrics, directory.predictions, directory.leaderboard)
    return any(map(storage.exists, results)) or any(map(_fold_has_trained, directory.all_folds()))


def _fold_has_trained(fold: FoldDirectory) -> bool:
    checkpoints = (name for name in storage.list_names(fold.checkpoints) if not name.startswith("."))
    return any(map(storage.exists, (fold.metrics, fold.result, fold.diverged))) or any(checkpoints)


def discard_untrained(directory: RunDirectory) -> None:
    """Removes what a run that has trained nothing has drawn or selected: settings of a search, genes."""
    storage.delete(directory.settings)
    for fold in directory.all_folds():
        storage.delete(fold.genes)


def differing_keys(earlier: Config, now: Config) -> list[str]:
    """Lists the keys that differ and can change a result, each with both values.

    >>> tree = {"cohort": {"clinical": "c.csv", "label": "PR"}, "features": {"dir": "f"}}
    >>> config = Config.model_validate(tree)
    >>> differing_keys(config, config.with_settings({"train.lr": 0.1, "cluster.workers": 1}))
    ['train.lr was 0.001 and is 0.1']
    """
    old, new = _flat(_relevant_keys(earlier)), _flat(_relevant_keys(now))
    return [
        f"{key} was {_shown(old.get(key))} and is {_shown(new.get(key))}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def in_short(differences: list[str]) -> str:
    """Joins the first of some differences for a message."""
    rest = len(differences) - _SHOWN
    return ", ".join(differences[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _relevant_keys(config: Config) -> dict[str, Any]:
    """Returns the keys that can change a result beside the folds, tables and features, which are hashed themselves."""
    tree = config.answer_keys()
    tree["folds"] = {"seed": config.folds.seed}
    if config.cohort.task == "regression":  # its classes follow from the table, whose numbers are hashed
        tree["cohort"].pop("classes", None)
    if config.cohort.omics is None:
        del tree["genes"], tree["omics"]
    elif config.genes.select not in GENE_SELECTIONS:
        tree["genes"]["select"] = "a list of genes"
    for key in config.search:
        section, name = key.split(".")
        tree.get(section, {}).pop(name, None)
    if config.search and config.tuning.method == "grid":
        del tree["tuning"]["seed"]
    return tree


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {k: v for key, inner in tree.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else key).items()}


def _shown(value: Any) -> str:
    return "its default" if value is None else str(value)
