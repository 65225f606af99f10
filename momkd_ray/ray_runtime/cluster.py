"""Connects a command to Ray: a cluster started on this machine for it, or the running one at an address."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from momkd_ray.config.sections import ClusterConfig
from momkd_ray.errors import InputError, RunError
from momkd_ray.ray_runtime import environment
from momkd_ray.ray_runtime.own_cluster import available_cpus, own_cluster

CONNECT_TIMEOUT_S = 10.0
# CPUs or GPUs. An autoscaler does not say how far it can scale, and adds a machine only for work that already waits.
ASSUMED_AUTOSCALER_LIMIT = 16.0


@dataclass(frozen=True)
class Connection:
    """A connection to a Ray cluster.

    Attributes:
        own: whether this command started the cluster, on this machine, so that it cannot grow.
        dashboard: URL of the dashboard; '' where there is none.
        token_file: file with the token that the dashboard of an own cluster asks for; '' for any other cluster.
    """

    own: bool
    dashboard: str
    token_file: str = ""

    def dashboard_note(self) -> str:
        """Returns a line that says where the dashboard is; '' where there is none."""
        token = f" (it asks for the token in {self.token_file})" if self.token_file else ""
        return f"Dashboard: {self.dashboard}{token}" if self.dashboard else ""


@contextmanager
def connect(address: str | None = None) -> Iterator[Connection]:
    """Connects to Ray for the length of the block; a cluster that it started ends with the block.

    Args:
        address: address of a running cluster. None takes `RAY_ADDRESS`, which `ray job submit` sets, or else starts
            a cluster on this machine, with its dashboard unless `MOMKD_RAY_DASHBOARD` is `0`.

    Raises:
        InputError: no Ray cluster answers at the address, or it is one for Ray Client.
        RunError: no cluster could be started, or what listens at the address cannot be joined.
    """
    address, origin = (address, "") if address else (os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS ")
    if address:
        _check_address(address, origin)
    environment.set_defaults(environment.CLIENT)
    import ray

    _silence_ray()
    if ray.is_initialized():
        yield Connection(not address, _dashboard_url())
        return
    logging.getLogger("ray").setLevel(logging.WARNING)
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        try:
            token_file = "" if address else stack.enter_context(own_cluster())
            if address:
                stack.callback(ray.shutdown)
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:  # of many types, plain `Exception` among them
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if address:
                raise RunError(f"no Ray cluster could be reached at {origin}{address}: {lines[0]}") from error
            raise RunError(f"no Ray cluster could be started on this machine: {lines[-1]}") from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm_handler)  # Ray's own handler exits with code 15 and no message
        yield Connection(not address, _dashboard_url(), token_file)


def is_connected() -> bool:
    """Returns whether this process is connected to a Ray cluster; imports nothing."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and hasattr(ray, "is_initialized") and bool(ray.is_initialized())


def starts_own_cluster(address: str | None) -> bool:
    """Returns whether `connect` will start a cluster on this machine."""
    return not (address or os.environ.get("RAY_ADDRESS") or is_connected())


def _check_address(address: str, origin: str) -> None:
    """Raises `InputError` unless a Ray cluster answers at the address; Ray itself would retry for minutes."""
    if address.startswith("ray://"):
        raise InputError(
            f"{origin}{address} is an address for Ray Client, which cannot run this package's tasks; use the address "
            "HOST:6379 on a machine of the cluster, or `ray job submit`"
        )
    host, separator, port = address.rpartition(":")
    if not (separator and port.isdigit()):
        return  # "auto", "local" or a name that only Ray can resolve
    if reason := _unreachable(host.strip("[]"), int(port)):
        cure = "unset it" if origin else "leave it out"
        raise InputError(
            f"no Ray cluster answers at {origin}{address}: {reason}; correct the address, or {cure} to start a cluster "
            "on this machine"
        )


def _unreachable(host: str, port: int) -> str:
    """Returns why no cluster can be reached at host and port; '' if one answers."""
    import grpc
    from ray._private.services import resolve_ip_for_localhost

    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    host = resolve_ip_for_localhost(host)  # as Ray does
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return ""  # the question below would need the certificates
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            health = channel.unary_unary("/grpc.health.v1.Health/Check")
            health(b"", timeout=max(1.0, deadline - time.monotonic()))
        except grpc.RpcError as error:
            return f"what listens there does not answer as Ray does ({error.code().name})"
    return ""


def _silence_ray() -> None:
    """Turns off Ray Data's progress bars, repeated-warning counts and console errors, which the package replaces."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # its environment variable is read when Ray is first imported, which may have happened before
    ray._private.ray_logging.RAY_DEDUP_LOGS = False
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it advises `Tuner.restore`, which is not used here
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # the session's log file keeps everything
            handler.setLevel(logging.CRITICAL)  # a failed task is reported once, by the exception raised for it


def _dashboard_url() -> str:
    import ray

    url = getattr(ray._private.worker._global_node, "webui_url", None)
    return f"http://{url}" if url else ""


def total_resource(kind: str) -> float:
    """Returns the amount of a resource (`CPU`, `GPU`) that the cluster has, or can be assumed to scale to.

    Without a connection these are the CPUs of this process.
    """
    if not is_connected():
        return float(available_cpus()) if kind == "CPU" else 0.0
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    # this connection's own client: Ray's global one belongs to the cluster that this process last started or ended
    client = ray._private.worker.global_worker.gcs_client
    scalable = ASSUMED_AUTOSCALER_LIMIT if is_autoscaler_v2(fetch_from_server=True, gcs_client=client) else 0.0
    return float(max(ray.cluster_resources().get(kind, 0.0), scalable))


def _per_worker(cluster: ClusterConfig) -> dict[str, float]:
    return {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus}


def missing_resources_note(cluster: ClusterConfig) -> str | None:
    """Returns a sentence on the resources that a fold needs and the cluster does not have now; None if it has all."""
    import ray

    available = ray.cluster_resources()
    for kind, amount in _per_worker(cluster).items():
        needed = cluster.least_workers * amount
        if needed > available.get(kind, 0.0):
            return (
                f"A fold needs {needed:g} {kind}{'' if needed == 1 else 's'} and the cluster has "
                f"{available.get(kind, 0.0):g}: it waits until there are machines for it"
            )
    return None


def check_fits(cluster: ClusterConfig, kind: str, total: float) -> None:
    """Raises `InputError` if a machine with this amount of a resource cannot train one fold with its fewest workers."""
    amount, workers = _per_worker(cluster)[kind], cluster.least_workers
    needed = workers * amount
    if needed <= total:
        return
    key = f"cluster.{kind.lower()}s_per_worker"
    cures = [f"set {key} to {total / workers:g}"]
    if workers > 1 and amount <= total:
        cures.insert(0, f"set cluster.workers to {int(total / amount)}")
    raise InputError(
        f"a fold needs {needed:g} {kind}s (cluster.workers times {key}), but this machine offers {total:g}; "
        f"{', or '.join(cures)}"
    )


def concurrent_folds(cluster: ClusterConfig, own: bool) -> int:
    """Returns how many folds the cluster can train at once, each with the most workers it may use; at least 1.

    Args:
        cluster: workers and resources of a fold.
        own: whether the cluster is this machine alone and cannot grow.

    Raises:
        InputError: such a cluster cannot train even one fold with its fewest workers.
    """
    per_worker = _per_worker(cluster)
    total = {kind: total_resource(kind) for kind in per_worker}
    if own:
        for kind in per_worker:
            check_fits(cluster, kind, total[kind])
    # the small constant absorbs rounding: 0.1 fits ten times into 1
    per_fold = {kind: cluster.most_workers * amount for kind, amount in per_worker.items() if amount}
    folds = {kind: int(total[kind] / amount + 1e-9) for kind, amount in per_fold.items()}
    if 0 < cluster.gpus < 1:  # a worker's share lies on one GPU, never on two
        folds["GPU"] = int(total["GPU"]) * int(1 / cluster.gpus + 1e-9)
    return max(1, min(folds.values()))
