"""Chooses the GPUs of a fold's workers by what the cluster has."""

from __future__ import annotations

from momkd_ray.config.sections import ClusterConfig


def choose_gpus(cluster: ClusterConfig, *, own: bool) -> tuple[ClusterConfig, str]:
    """Replaces `gpus_per_worker: auto` by the number for the cluster to which this process is connected.

    It is one GPU where the cluster has, or can start, as many as a fold has workers at least.

    Args:
        cluster: workers and resources of a fold.
        own: whether the cluster is this machine alone, started by this command.

    Returns:
        The resources with a number of GPUs, and a sentence that tells the choice; '' if there was none to make.
    """
    if cluster.gpus_per_worker != "auto":
        return cluster, ""
    gpus, reason = _gpus_of_cluster(), ""
    if not gpus:
        reason = "this machine has no GPU" if own else "the cluster has no GPU"
    elif gpus < cluster.least_workers:
        reason = (
            f"cluster.workers is {cluster.least_workers}, more than the GPUs there are ({gpus:g}); set "
            f"cluster.workers to {int(gpus)} to use them"
        )
    elif own and not _usable_here():
        reason = "PyTorch cannot use this machine's GPU; `momkd-ray doctor` tells why"
    if reason:
        return cluster.model_copy(update={"gpus_per_worker": 0.0}), f"Folds are trained on CPUs: {reason}"
    there = "this machine has" if own else "the cluster has"
    told = f"Every worker trains on a GPU of its own (cluster.gpus_per_worker is auto, and {there} {gpus:g})"
    return cluster.model_copy(update={"gpus_per_worker": 1.0}), told


def _gpus_of_cluster() -> float:
    """Returns how many GPUs the cluster has, or its autoscaler can start."""
    import ray

    startable = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return float(max(ray.cluster_resources().get("GPU", 0.0), startable.get("GPU", 0)))


def _usable_here() -> bool:
    import torch

    return bool(torch.cuda.is_available())
