"""The machines of a cluster: which of them train, and questions that each answers itself."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from momkd_ray import storage
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.errors import InputError

ANSWER_S = 60.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        name: its address, and its name where that is another.
        object_store_bytes: size of its object store.
        cpus: that it offers.
        trains: whether a worker fits it.
    """

    id: str
    name: str
    object_store_bytes: int
    cpus: float
    trains: bool


def nodes_of(cluster: ClusterConfig) -> list[Node]:
    """Returns the machines that are up now; one that cannot hold a worker, as a head without CPUs, does not train."""
    import ray

    nodes = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        offered: dict[str, float] = node["Resources"]
        cpus = offered.get("CPU", 0.0)
        trains = cpus >= cluster.cpus_per_worker
        trains = trains and offered.get("GPU", 0.0) >= cluster.gpus
        address, host = node["NodeManagerAddress"], node["NodeManagerHostname"]
        name = address if host in ("", address) else f"{host} ({address})"
        nodes.append(Node(node["NodeID"], name, int(offered.get("object_store_memory", 0)), cpus, trains))
    return nodes


def ask_nodes(nodes: Sequence[Node], question: Callable[..., Answer], *arguments: Any) -> dict[str, Answer]:
    """Calls a function on every node; those that do not answer in time are left out.

    Args:
        nodes: to ask.
        question: is called with `arguments`.
        *arguments: picklable.

    Returns:
        The answers by the nodes' ids.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    if [node.id for node in nodes] == [here]:
        return {here: question(*arguments)}  # starting a process would take seconds
    remote = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[remote.options(scheduling_strategy=strategy).remote(*arguments)] = node.id
    answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    for answer in late:
        ray.cancel(answer, force=True)
    answers: dict[str, Answer] = {}
    for answer in answered:
        try:
            answers[asked[answer]] = ray.get(answer)
        except (ray.exceptions.RayError, OSError):  # the node has gone away
            continue
    return answers


def refuse_unshared(folders: Mapping[str, str], files: Mapping[str, str]) -> None:
    """Checks that every machine of the cluster sees the same local folders and files.

    A file is written into each folder, looked for by every machine, and removed.

    Args:
        folders: keys of the configuration by folder, into which this process may write; those on S3 are seen by all.
        files: keys of the configuration by file.

    Raises:
        InputError: a machine does not see one of them.
    """
    nodes = nodes_of(ClusterConfig()) if is_connected() else []
    if len(nodes) < 2:
        return
    token = uuid.uuid4().hex
    looked_for: dict[str, tuple[str, str, int]] = {}  # path, key and bytes of a file, by its path
    marks = []
    for folder, key in folders.items():
        if (path := storage.local_path(folder)) is not None:
            marks.append(storage.join(path, f".seen-by-all-{token}"))
            looked_for[marks[-1]] = (path, key, len(token))
    for file, key in files.items():
        path, info = storage.local_path(file), storage.stat(file)
        if path is not None and info is not None:
            looked_for[path] = (path, key, info.size)
    try:
        for mark in marks:
            storage.write_text(mark, token)
        sizes = {file: size for file, (_, _, size) in looked_for.items()}
        for node_id, unseen in ask_nodes(nodes, _unseen, sizes).items() if sizes else ():
            for file in unseen[:1]:
                path, key, _ = looked_for[file]
                name = next(node.name for node in nodes if node.id == node_id)
                raise InputError(
                    f"the machine {name} of the cluster does not see {path} ({key}) as this one does: put it on a file "
                    "system that all machines mount at this path, or on s3://"
                )
    finally:
        for mark in marks:
            storage.delete(mark)


def is_connected() -> bool:
    """Returns whether this process is connected to Ray, without importing it."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _unseen(sizes: dict[str, int]) -> list[str]:
    """Returns the files that this machine does not see with these sizes; over a network they may come late."""
    unseen = list(sizes)
    for wait_s in (0.0, 0.5, 2.0, 4.0):
        time.sleep(wait_s)
        unseen = [path for path in unseen if _size(path) != sizes[path]]
        if not unseen:
            break
    return unseen


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
