"""Says what was chosen on a fold's validation patients, and which model was tested."""

from __future__ import annotations

from collections.abc import Sequence

from momkd_ray.report.finished_run import FinishedRun


def told_choices(run: FinishedRun, figure: str, threshold: str | None = None) -> dict[str, str]:
    """Says what the validation patients are for, how far their metric can be trusted, and which epoch was kept.

    Args:
        run: the finished run.
        figure: the name of the figure, such as `AUC`.
        threshold: the threshold in words, if one was chosen.

    Returns:
        The sentences `held_out`, `believed` and `kept`.
    """
    return {
        "held_out": _held_out(run, threshold),
        "believed": _believed(run, figure),
        "kept": _kept(run, figure),
    }


def _held_out(run: FinishedRun, threshold: str | None) -> str:
    chosen = _chosen(run) + ([threshold] if threshold else [])
    chooses = f"chooses {_listed(chosen)}" if chosen else "shows how the training went and chooses nothing"
    said = f"From each fold's training patients a validation set is held out; it {chooses}."
    if _refits(run):
        said += " Then the model is trained again on training and validation patients together, and that one is tested."
    return said


def _believed(run: FinishedRun, figure: str) -> str:
    if chosen := _chosen(run):
        chose = f"The validation {figure} chose {_listed(chosen)} and is therefore optimistic"
        return f"{chose}; only the test {figure} is a result."
    if _refits(run):
        return f"The validation {figure} is that of the model before it was trained again with the validation patients."
    return f"The validation {figure} chose nothing: the model is that of the last epoch."


def _kept(run: FinishedRun, figure: str) -> str:
    kept = f"the one with the best validation {figure}" if _keeps_best(run) else "the last"
    before = " The curves are of the training before the one with the validation patients." if _refits(run) else ""
    return f"Dashed: the kept epoch, {kept}.{before}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _chosen(run: FinishedRun) -> list[str]:
    return [*(["the setting"] if run.figures.get("search") else []), *(["the epoch"] if _keeps_best(run) else [])]


def _keeps_best(run: FinishedRun) -> bool:
    return bool(run.section("train").get("keep", "best") == "best")  # runs of a version without the key kept the best


def _refits(run: FinishedRun) -> bool:
    return bool(run.section("train").get("refit"))
