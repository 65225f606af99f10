"""Opens a run for a command: reads cohort and folds, takes the run directory, connects to Ray, fills the bag store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich import filesize

from momkd_ray import storage
from momkd_ray.bags.unused import using
from momkd_ray.config.load import Config
from momkd_ray.crossval.early_checks import check_own_machine
from momkd_ray.errors import InputError
from momkd_ray.input_faults import OnError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import concurrent_folds, connect
from momkd_ray.ray_runtime.gpus import choose_gpus
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.layout import RunDirectory
from momkd_ray.run.prepare import open_cohort, open_folds, open_run_inputs, refuse_absent_features
from momkd_ray.storage.lease import lease


@dataclass(frozen=True)
class OpenRun:
    """A run that this process alone works on.

    Attributes:
        inputs: cohort, folds and bags.
        progress: reports to the user.
        own_cluster: whether the Ray cluster is this command's own, on this machine.
    """

    inputs: RunInputs
    progress: ProgressReporter
    own_cluster: bool


@contextmanager
def open_run(
    config: Config, address: str | None, on_error: OnError = "stop", *, fold: int | None = None
) -> Iterator[OpenRun]:
    """Prepares a run and holds its directory for the length of the block.

    Args:
        config: the resolved configuration.
        address: address of a running Ray cluster; None starts one on this machine, unless `RAY_ADDRESS` is set.
        on_error: whether bad inputs end it or are left out.
        fold: the one fold to train, beside which other processes may train others; None for the entire directory.

    Raises:
        InputError: an input is bad, or there is no such fold.
        RunError: another process works in the run directory, or Ray could not be started.
    """
    check_own_machine(config, address)
    with ProgressReporter() as progress:
        cohort = open_cohort(config, progress, on_error)
        refuse_absent_features(config, cohort)
        plan = open_folds(config, cohort, progress)
        if fold is not None and fold not in plan.folds:
            raise InputError(f"there is no fold {fold}; the folds are {', '.join(map(str, plan.folds))}")
    directory = RunDirectory(config.run.dir)
    part = "" if fold is None else f"fold {fold}"
    with (
        ProgressReporter() as progress,
        lease(directory.lease, directory.location, part, progress.info) as others_work,
    ):
        if fold is None:
            _remove_leftovers(directory, progress)
        progress.info(f"Connecting to Ray at {address}" if address else "Connecting to Ray")
        with connect(address) as ray:
            if note := ray.dashboard_note():
                progress.info(note)
            cluster, told = choose_gpus(config.cluster, own=ray.own)
            if told:
                progress.info(told)
            if ray.own:
                concurrent_folds(cluster, own=True)
            with using(config.store_uri, progress.info):
                inputs = open_run_inputs(config, cohort, plan, progress, on_error, others_work, cluster.gpus)
                # run.yaml has the configuration as it was given
                inputs = replace(inputs, config=inputs.config.model_copy(update={"cluster": cluster}))
                yield OpenRun(inputs, progress, ray.own)


def _remove_leftovers(directory: RunDirectory, progress: ProgressReporter) -> None:
    """Removes what killed writers have left in a run directory of which this process holds all."""
    removed = storage.remove_temporary(directory.location)
    for name in storage.list_names(directory.location):
        if "=" in name:  # of a fold, a setting or a model
            removed += storage.remove_temporary(storage.join(directory.location, name), below=True)
    if removed:
        size = filesize.decimal(sum(file.size for file in removed))
        progress.info(f"Removed {len(removed)} files ({size}) that killed commands had not finished")
