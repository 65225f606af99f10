"""Many pieces of work on all CPUs, or GPUs, of the cluster, by Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from momkd_ray.errors import as_user_error
from momkd_ray.ray_runtime.cluster import total_resource

# Ray Data takes some tenths of a second to give a CPU its next task, so tasks are few and of many pieces
_TASKS_PER_PLACE = 3
_MOST_PIECES_PER_TASK = 64  # so that a cluster that grows meanwhile finds tasks to take


def parallel_map(
    pieces: Sequence[Any], work: Callable[..., Any], doing: str, *, gpus: float = 0, **arguments: Any
) -> Iterator[Any]:
    """What `work` returns for each piece, as they are done.

    Args:
        pieces: of work, about equally large.
        work: called with a piece and the arguments.
        doing: what fails if it fails, as a sentence begins.
        gpus: that a task holds, in a CPU's stead.
        arguments: of every call.

    Raises:
        InputError, RunError: what `work` raised, or that Ray could not finish it.
    """
    import ray

    if not pieces:
        return
    places = total_resource("GPU") / gpus if gpus else total_resource("CPU")
    n_tasks = max(_TASKS_PER_PLACE * int(places), len(pieces) // _MOST_PIECES_PER_TASK)
    n_tasks = min(max(n_tasks, 1), len(pieces))
    tasks = [{"pieces": list(pieces[i::n_tasks])} for i in range(n_tasks)]
    context = ray.data.DataContext.get_current()
    usual = context.target_max_block_size
    try:
        context.target_max_block_size = 1  # so that a task hands out each piece when it is done, not all at its end
        dataset = ray.data.from_items(tasks, override_num_blocks=n_tasks).flat_map(
            _work_through,
            fn_kwargs={"work": work, "arguments": arguments},
            **({"num_gpus": gpus} if gpus else {"num_cpus": 1}),
        )
    finally:
        context.target_max_block_size = usual
    try:
        for row in dataset.iter_rows():
            yield row["done"]
    except (ray.exceptions.RayError, OSError) as error:
        raise as_user_error(doing, error) from error


def _work_through(
    task: Mapping[str, Any], work: Callable[..., Any], arguments: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for piece in task["pieces"]:
        yield {"done": work(piece, **arguments)}
