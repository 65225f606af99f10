"""The machines of a cluster: which of them train, and questions that each answers itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from momkd_ray.config.sections import ClusterConfig

ANSWER_S = 60.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
        id: Ray's.
        name: its address, and its name where that is another.
        object_store_bytes: size of its object store.
        trains: whether a worker fits it.
    """

    id: str
    name: str
    object_store_bytes: int
    trains: bool


def nodes_of(cluster: ClusterConfig) -> list[Node]:
    """Returns the machines that are up now; one that cannot hold a worker, as a head without CPUs, does not train."""
    import ray

    nodes = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        offered: dict[str, float] = node["Resources"]
        trains = offered.get("CPU", 0.0) >= cluster.cpus_per_worker
        trains = trains and offered.get("GPU", 0.0) >= cluster.gpus
        address, host = node["NodeManagerAddress"], node["NodeManagerHostname"]
        name = address if host in ("", address) else f"{host} ({address})"
        nodes.append(Node(node["NodeID"], name, int(offered.get("object_store_memory", 0)), trains))
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
