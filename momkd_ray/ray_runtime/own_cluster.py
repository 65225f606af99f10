"""Starts a Ray cluster of this machine alone that only the command's own processes can use.

Ray's processes exchange pickled functions, so whoever can speak to one of them can run code as the user. Three
measures keep others out:

- a random token, which every process of the cluster demands of every request and inherits through its environment;
- all ports bind to the loopback address, so that no other machine can reach them;
- the session folder, with its local sockets and logs, lies in a folder that only the user can enter.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from momkd_ray.ray_runtime import environment

LOOPBACK = "127.0.0.1"
TOKEN_FILE = "momkd-ray-token"
DASHBOARD_VARIABLE = "MOMKD_RAY_DASHBOARD"
"""Set to `0`, a cluster that a command starts has no dashboard, whose processes take seconds to start and 150 MiB."""
START_WAIT_S = 120.0
"""How long Ray's first processes may take to start."""
_MAX_SOCKET_PATH = 103  # macOS; Linux has four bytes more
_LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/dash_MetricsHead"


@contextmanager
def own_cluster() -> Iterator[str]:
    """Starts a cluster on this machine, connects to it, and ends it with the block.

    The environment of this process is the same afterwards. Ray must not be initialised.

    Yields:
        Path of the file with the token, which the dashboard asks for. Only the user can read it.

    Raises:
        Exception: the cluster could not be started; Ray raises various types.
    """
    import ray

    token = secrets.token_hex(32)
    folder = _private_folder()
    # Ray's processes also create sockets in TMPDIR
    variables = {**environment.OWN_CLUSTER, "RAY_AUTH_TOKEN": token, "TMPDIR": os.path.dirname(folder)}
    try:
        with environment.temporarily(variables, unset=["RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"]):
            _reload_authentication()
            with _loopback_address(), _patient_start():
                ray.init(
                    address="local",
                    num_cpus=available_cpus(),
                    include_dashboard=os.environ.get(DASHBOARD_VARIABLE, "1") != "0",
                    dashboard_host=LOOPBACK,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    _temp_dir=os.path.join(folder, "ray"),
                )
        yield _write_token(token)
    finally:
        ray.shutdown()
        _reload_authentication()


@contextmanager
def _patient_start() -> Iterator[None]:
    """Lets Ray wait longer for its first processes than the 30 s that it has fixed, too few on a busy machine."""
    from ray._private import services

    get_node = services.get_node

    def wait_for_node(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + START_WAIT_S
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:  # it has not registered yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    services.get_node = wait_for_node
    try:
        yield
    finally:
        services.get_node = get_node


def available_cpus() -> int:
    """Returns how many CPUs this process may use, by its affinity and by the quotas of its control groups; at least 1.

    Ray itself ignores affinity, so that a job that a batch system gives one core of many would overload it.
    """
    cpus = float(os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):
        cpus = min(cpus, len(os.sched_getaffinity(0)))
    return max(1, int(min([cpus, *_cgroup_quotas()])))


def _cgroup_quotas(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> list[float]:
    """CPU quotas of the process's control groups, in CPUs; none outside Linux or without a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        version_2 = not controllers
        base = root if version_2 else root / "cpu"
        group = base / path.lstrip("/")
        for folder in [group, *group.parents]:
            quotas += _quota(folder, version_2)
            if folder == base:
                break
    return quotas


def _quota(folder: Path, version_2: bool) -> list[float]:
    try:
        if version_2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return [int(quota) / int(period)] if quota not in ("max", "-1") else []
    except (OSError, ValueError, ZeroDivisionError):
        return []


def _private_folder() -> str:
    """Creates a folder for Ray's sessions that only the user can enter; Ray opens its own folders to everybody.

    It lies in `RAY_TMPDIR`, `TMPDIR` or `/tmp`, the first that is short enough for the paths of sockets in it.
    """
    candidates = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"]
    parent = next((path for path in candidates if path and _fits_sockets(path)), "/tmp")
    folder = os.path.join(parent, f"momkd-ray-{os.getuid()}")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.lstat(folder).st_uid == os.getuid():  # not a folder or link that another user has put there
            os.chmod(folder, 0o700)
            return folder
    except OSError:
        pass
    return tempfile.mkdtemp(prefix="momkd-ray-", dir=parent)


def _fits_sockets(folder: str) -> bool:
    longest = os.path.join(folder, f"momkd-ray-{os.getuid()}", _LONGEST_SOCKET)
    return len(longest) <= _MAX_SOCKET_PATH and os.access(folder, os.W_OK)


@contextmanager
def _loopback_address() -> Iterator[None]:
    """Lets Ray use the loopback address for this node, as on macOS, where that spares the user firewall dialogs."""
    import ray

    constants = ray._private.ray_constants
    usual = constants.ENABLE_RAY_CLUSTER
    try:
        constants.ENABLE_RAY_CLUSTER = False
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = usual


def _write_token(token: str) -> str:
    import ray

    path = os.path.join(ray._private.worker._global_node.get_session_dir_path(), TOKEN_FILE)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return path


def _reload_authentication() -> None:
    """Makes this process read mode and token of authentication from the environment again; Ray caches both."""
    import ray

    ray._raylet.Config.initialize("")  # first: a thread that still uses the old mode must find the old token
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
