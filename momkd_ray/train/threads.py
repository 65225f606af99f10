"""The number of PyTorch's threads of a worker: as many as its CPUs, if a pass is large enough to occupy them."""

from __future__ import annotations

from momkd_ray.model.registry import model_class
from momkd_ray.train.task import FoldTask, RoleBags


def threads_of_worker(task: FoldTask) -> int:
    """Returns the number of threads for a fold: of several, each has at least `numbers_per_thread` to work on.

    Small operations take longer with several threads, which wait for each other at the end of each. The number depends
    on the fold's bags and configuration alone, so that it is the same when the fold is resumed.
    """
    config, patches = task.config, RoleBags.of(task.bags, "train").patches
    cpus = max(1, int(config.cluster.cpus_per_worker))
    if cpus == 1 or not patches:
        return 1
    bags = -(-config.train.bags_per_step // config.cluster.least_workers)
    mean = sum(patches) / len(patches)
    patches_of_pass = max(mean, min(bags * mean, config.train.patches_per_pass))
    return int(min(cpus, max(1, patches_of_pass * task.width // model_class(config.model).numbers_per_thread)))
