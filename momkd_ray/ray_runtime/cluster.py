"""The Ray cluster that a command runs on: one of its own on this machine, or the one at an address."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from momkd_ray.config.sections import ClusterConfig
from momkd_ray.errors import InputError, RunError

# a cluster of our own: no token file under the home directory, no usage report, a calm console
_OWN_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
CONNECT_TIMEOUT_S = 10.0
# CPUs or GPUs. An autoscaler tells nobody how far it goes, and adds a machine only for work that already waits.
GROWS_TO = 16.0
_CALM = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # what Ray itself has to say comes as plain lines: a job's log is read in files
    "RAY_COLOR_PREFIX": "0",
}


@dataclass(frozen=True)
class Connection:
    """A Ray that is up."""

    own: bool  # started on this machine by this command: it will never be larger than it is
    dashboard: str  # the dashboard's address, '' where there is none


@contextmanager
def connect(address: str | None = None) -> Iterator[Connection]:
    """Ray for the length of the block.

    Args:
        address: of a running cluster; without one, `RAY_ADDRESS` (set inside `ray job submit`) or else a cluster
            started on this machine, with its dashboard, and ended with the block.

    Raises:
        InputError: nothing listens at the address.
        RunError: what listens there is no cluster that Ray can join.
    """
    if address is not None:
        _check_listening(address)
    for name, value in _CALM.items():
        os.environ.setdefault(name, value)
    own = address is None and not os.environ.get("RAY_ADDRESS")
    if own:
        for name, value in _OWN_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    import ray

    _quiet()
    if ray.is_initialized():
        yield Connection(own, _dashboard())
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    options = {"include_dashboard": True, "dashboard_host": "127.0.0.1"} if own else {}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # left to itself, Ray would join whatever cluster last ran on this machine, even a dead one
        ray.init(address="local" if own else address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError, TimeoutError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        place = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise RunError(f"no Ray cluster could be reached at {place}: {reason}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own ends the process with code 15 and no word
    try:
        yield Connection(own, _dashboard())
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Ray itself retries for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not (separator and port.isdigit()):
        return  # "auto", "local" or a name that only Ray can resolve
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


def _quiet() -> None:
    """Our own progress display tells what Ray Data's bars and logs would, and we go on without `Tuner.restore`."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # it counts repeated warnings in colour; its variable is read when Ray is first imported, which may be earlier
    ray._private.ray_logging.RAY_DEDUP_LOGS = False
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the session's log file keeps all
            handler.setLevel(logging.CRITICAL)  # a failed task is told once, by what we raise


def _dashboard() -> str:
    import ray

    url = getattr(ray._private.worker._global_node, "webui_url", None)
    return f"http://{url}" if url else ""


def total_resource(kind: str) -> float:
    """How much of a resource (`CPU`, `GPU`) the cluster has, or is taken to grow to by its autoscaler."""
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    # by this connection's own client: Ray's global one is of whatever cluster this process last started or ended
    client = ray._private.worker.global_worker.gcs_client
    grown = GROWS_TO if is_autoscaler_v2(fetch_from_server=True, gcs_client=client) else 0.0
    return float(max(ray.cluster_resources().get(kind, 0.0), grown))


def missing_resources_note(cluster: ClusterConfig) -> str | None:
    """A sentence on what a fold needs and the cluster, as it now stands, does not have."""
    import ray

    have = ray.cluster_resources()
    for kind, one in {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}.items():
        need = cluster.least_workers * one
        if need > have.get(kind, 0.0):
            return (
                f"A fold needs {need:g} {kind}{'' if need == 1 else 's'} and the cluster has {have.get(kind, 0.0):g}: "
                "it waits until there are machines for it"
            )
    return None


def concurrent_folds(cluster: ClusterConfig, own: bool) -> int:
    """How many folds the cluster holds at once, each with all the workers it may take.

    Raises:
        InputError: a cluster of this machine alone cannot hold even one with its fewest workers.
    """
    a_worker = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    have = {kind: total_resource(kind) for kind in a_worker}
    for kind, one in a_worker.items():
        need = cluster.least_workers * one
        if own and need > have[kind]:
            raise InputError(
                f"a fold needs {need:g} {kind}s (cluster.workers times cluster.{kind.lower()}s_per_worker), "
                f"but this machine offers {have[kind]:g}; lower one of them"
            )
    # a tenth fits ten times into 1, whatever its last digit says; parts of a GPU are parts of one, never of two
    fitting = {kind: int(have[kind] / (cluster.most_workers * one) + 1e-9) for kind, one in a_worker.items() if one}
    if 0 < cluster.gpus_per_worker < 1:
        fitting["GPU"] = int(have["GPU"]) * int(1 / cluster.gpus_per_worker + 1e-9)
    return max(1, min(fitting.values()))
