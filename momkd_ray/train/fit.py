"""Starts the workers of a fold: this process for a single worker, otherwise a Ray Train `TorchTrainer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from momkd_ray import storage
from momkd_ray.errors import InputError, as_user_error
from momkd_ray.ray_runtime import environment
from momkd_ray.train.task import FoldTask
from momkd_ray.train.worker import train_loop_per_worker


def fit(
    task: FoldTask, stop: Callable[[], bool] | None = None, *, refit: FoldTask | None = None
) -> dict[str, Any] | None:
    """Trains a fold within its Tune trial, reports the metrics of every epoch to it, and trains the fold's refit.

    A single worker trains in the trial's own process, which saves the half minute that Ray Train takes to start; two
    or more, or an elastic number, are DDP workers of a `TorchTrainer`. Both run `train_loop_per_worker`.

    Args:
        task: the fold.
        stop: called before each epoch; returns whether the fold is to end. (If Tune's scheduler ended the trial
            instead, the placement group of its workers would remain.)
        refit: the fold with its validation patients among those of training, which the same workers train next.

    Returns:
        The result of `train_loop_per_worker`; None if the fold was stopped.

    Raises:
        InputError: fewer bags per step than workers, or bad input that a worker has met.
        RunError: the workers failed more often than `cluster.max_failures`, or would fail again in the same way.
    """
    cluster, bags_per_step = task.config.cluster, task.config.train.bags_per_step
    if bags_per_step < cluster.most_workers:
        raise InputError(
            f"train.bags_per_step is {bags_per_step}, fewer than cluster.workers ({cluster.most_workers}): a worker "
            f"would have nothing to do; set train.bags_per_step to {cluster.most_workers} or more"
        )
    if cluster.most_workers == 1:
        from ray import tune

        return train_loop_per_worker({"task": task, "refit": refit, "report": tune.report, "stop": stop})
    return _fit_workers(task, stop, refit)


def _fit_workers(task: FoldTask, stop: Callable[[], bool] | None, refit: FoldTask | None) -> dict[str, Any] | None:
    cluster = task.config.cluster
    environment.override(environment.ELASTIC_TRAIN if cluster.elastic else environment.TRAIN)
    from ray import train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from momkd_ray.train.ray_train_hooks import (
        LimitFailedStarts,
        NoRetryOnKnownErrors,
        TolerantTorchConfig,
        tell_cluster_address,
    )

    tell_cluster_address()
    file_system, path = storage.pyarrow_filesystem(task.directory.ray_train)
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus:
        resources["GPU"] = cluster.gpus
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"task": task, "refit": refit, "report": train.report, "stop": stop},
        torch_config=TolerantTorchConfig(),
        scaling_config=train.ScalingConfig(
            num_workers=cluster.workers,
            elastic_resize_monitor_interval_s=cluster.resize_interval_s,
            use_gpu=bool(cluster.gpus),
            resources_per_worker=resources,
        ),
        run_config=train.RunConfig(
            # a fold resumes from its own checkpoints; Ray Train keeps none under this name
            name=f"{task.fingerprint}-fold-{task.fold}",
            storage_path=path,
            storage_filesystem=file_system,
            callbacks=[TuneReportCallback(), NoRetryOnKnownErrors(), LimitFailedStarts(cluster.max_failures)],
            failure_config=train.FailureConfig(max_failures=cluster.max_failures),
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise as_user_error(f"fold {task.fold} failed on its workers", error) from error
    returned: dict[str, Any] | None = result.return_value
    return returned
