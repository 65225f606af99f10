"""Every environment variable that the package sets, with its value and the reason; no other module sets one.

Each group is applied by the module that needs it: with `set_defaults` where a value that the user has set takes
precedence, with `override` where another value would break the run, with
`temporarily` where only processes started meanwhile may see it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

COMPUTE = {
    # OpenMP's threads otherwise spin at the end of every operation, in which they wait for each other; where something
    # else runs too, each waits for one that has no CPU, and small operations take a thousand times as long
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN and PyTorch keep what they prepared for the last 1,024 shapes of a product, a megabyte for each; bags of
    # ever new sizes fill that anew in every fold of a process, until the machine's memory is full
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
    "LRU_CACHE_CAPACITY": "16",
}
"""For every process that computes, before it imports PyTorch; defaults."""

CLIENT = COMPUTE | {
    # the package's own log lines are printed once, without Ray Train's prefix
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # tasks that ask for no GPU keep CUDA_VISIBLE_DEVICES as it is, which Ray otherwise warns about
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Tune's new console output would draw over the package's progress bars
    "RAY_AIR_NEW_OUTPUT": "0",
    # a job's log is a file, in which colour codes are noise
    "RAY_COLOR_PREFIX": "0",
    # Ray Data otherwise starts a process that collects how it is used, for the authors of Ray
    "RAY_DATA_USAGE_DISABLED": "1",
}
"""For every process that connects to Ray; defaults."""

OWN_CLUSTER = {
    # every request must carry the cluster's token, which is added as RAY_AUTH_TOKEN
    "RAY_AUTH_MODE": "token",
    # the node's address is the loopback address on Linux too
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # nothing is sent to the authors of Ray
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""For a cluster that a command starts on this machine; set while it starts, and inherited by its processes."""

TRAIN = {
    # report() waits for the controller's next poll, every two seconds by default
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # fills the dashboard's Train page
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
}
"""For Ray Train's controller and workers; overrides. `RAY_ADDRESS`, that of their own cluster, is added."""

ELASTIC_TRAIN = TRAIN | {
    # a worker group that cannot be placed is sized anew for the nodes that exist; Ray waits for 30 s or more
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
}
"""For Ray Train with a range of workers; overrides."""

TUNE = TRAIN | {
    # Tune asks a searcher for one trial beyond the running ones, for which an autoscaler would start one node at a
    # time; the package's searcher limits the number of pending trials itself
    "TUNE_MAX_PENDING_TRIALS_PG": str(10**6),
}
"""For Tune's driver; overrides."""

MLFLOW = {
    # MLflow's client repeats a failed request for minutes by default, during which Tune waits
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""For MLflow's client; defaults."""

DETERMINISTIC_CUDA = {
    # without a workspace of fixed size cuBLAS may choose another order of summation from run to run
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""For `train.deterministic`; defaults."""


def set_defaults(variables: Mapping[str, str]) -> None:
    """Sets the variables that are not set yet, for this process and those that it starts."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


@contextmanager
def temporarily(variables: Mapping[str, str], unset: Sequence[str] = ()) -> Iterator[None]:
    """Sets and unsets variables for the length of the block; processes started in it keep them."""
    before = {name: os.environ.get(name) for name in [*variables, *unset]}
    try:
        for name in unset:
            os.environ.pop(name, None)
        os.environ.update(variables)
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def override(variables: Mapping[str, str]) -> None:
    """Sets the variables, whatever they were, for this process and those that it starts."""
    os.environ.update(variables)
