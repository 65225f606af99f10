"""Calls a function for many items: in parallel on the cluster, by Ray Data, or in this process where there is none."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from momkd_ray import progress
from momkd_ray.errors import InputError, RunError, as_user_error
from momkd_ray.ray_runtime.cluster import is_connected, total_resource
from momkd_ray.ray_runtime.small_work import FIRST_TASKS_S, Work

# Ray Data takes some tenths of a second to give a CPU its next task, so a task has many items
_TASKS_PER_SLOT = 3
_MAX_CHUNKS_PER_TASK = 64  # a cluster that grows meanwhile must find tasks that have not started

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[..., Result],
    items: Sequence[Item],
    failure: str,
    *,
    chunk: int = 1,
    gpus: float = 0,
    work: Work | None = None,
    **arguments: Any,
) -> Iterator[Result]:
    """Yields `function(item, **arguments)` for every item, in the order in which the calls finish.

    The calls are tasks of Ray Data if this process is connected to a cluster (`connect_if_worth` chooses) and they are
    not done before such tasks would begin; else they run here, one after another, on one thread as a task does, with
    the same results and errors.

    Items, arguments and results can be any objects that pickle takes.

    Args:
        function: a function of a module.
        items: work of about equal size.
        failure: beginning of the error's sentence if a call fails: `the slides could not be predicted`.
        chunk: number of items whose results are handed out together; more than 1 where an item takes milliseconds.
        gpus: GPUs that each task holds, instead of a CPU; a fraction of one is allowed.
        work: what all calls take, where this process could do them; None leaves them to the cluster, however small.
        arguments: keyword arguments of every call.

    Raises:
        InputError, RunError: what a call raised; `RunError` also if Ray could not finish.
    """
    if not items:
        return
    small = is_connected() and work and work.saved_by_cluster(int(total_resource("CPU"))) <= FIRST_TASKS_S
    if small:
        progress.detail(f"{len(items)} items are done by the command itself: tasks of the cluster would begin later")
    if small or not is_connected():
        yield from _here(function, items, failure, arguments)
        return
    import ray

    chunks = [pickle.dumps(items[i : i + chunk]) for i in range(0, len(items), chunk)]
    dataset = _results_by_ray_data(function, chunks, failure, gpus, arguments)
    try:
        for row in dataset.iter_rows():
            results, error = pickle.loads(row["results"])
            yield from results
            if error is not None:
                raise error
    except (ray.exceptions.RayError, OSError) as error:
        raise as_user_error(failure, error) from error


def _results_by_ray_data(
    function: Callable[..., Any], chunks: Sequence[bytes], failure: str, gpus: float, arguments: Mapping[str, Any]
) -> Any:
    """Plans the tasks of Ray Data whose rows are the results of each chunk of items."""
    import ray

    slots = int(total_resource("GPU") / gpus if gpus else total_resource("CPU"))
    n_tasks = max(_TASKS_PER_SLOT * slots, len(chunks) // _MAX_CHUNKS_PER_TASK)
    n_tasks = min(max(n_tasks, 1), len(chunks))
    tasks = [{"chunks": chunks[i::n_tasks]} for i in range(n_tasks)]
    context = ray.data.DataContext.get_current()
    usual_block_size = context.target_max_block_size
    try:
        context.target_max_block_size = 1  # a task hands out each chunk when it is done, not all of them at its end
        return ray.data.from_items(tasks, override_num_blocks=n_tasks).flat_map(
            _run_task,
            fn_kwargs={"function": function, "failure": failure, "arguments": arguments},
            **({"num_gpus": gpus} if gpus else {"num_cpus": 1}),
        )
    finally:
        context.target_max_block_size = usual_block_size


def _here(
    function: Callable[..., Result], items: Sequence[Item], failure: str, arguments: Mapping[str, Any]
) -> Iterator[Result]:
    """Calls the function in this process for one item after another."""
    for item in items:
        with _one_thread():
            results, error = _results(function, [item], failure, arguments)
        yield from results
        if error is not None:
            raise error


def _results(
    function: Callable[..., Result], items: Sequence[Item], failure: str, arguments: Mapping[str, Any]
) -> tuple[list[Result], InputError | RunError | None]:
    """Returns the results up to the first call that fails, and what the user is told of it.

    A task returns its error, as Ray Data would add advice on its own settings to the text of one that is raised.
    """
    results = []
    for item in items:
        try:
            results.append(function(item, **arguments))
        except Exception as error:
            return results, as_user_error(failure, error)
    return results, None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limits PyTorch to one thread, as in a task: its last digits can depend on their number."""
    torch: Any = sys.modules.get("torch")
    threads = 1 if torch is None else torch.get_num_threads()
    try:
        if threads > 1:
            torch.set_num_threads(1)
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def _run_task(
    task: Mapping[str, Any], function: Callable[..., Any], failure: str, arguments: Mapping[str, Any]
) -> Iterator[dict[str, bytes]]:
    """One task of Ray Data: a row of results for each of its chunks."""
    for chunk in task["chunks"]:
        yield {"results": pickle.dumps(_results(function, pickle.loads(chunk), failure, arguments))}
