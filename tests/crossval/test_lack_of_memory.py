"""A process that Ray ends for lack of memory is a lost one for Tune, and what is told of it names a cure."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from support.runs import inputs_of

from momkd_ray.config.load import Config
from momkd_ray.crossval.cross_validate import _raise_failures
from momkd_ray.crossval.median_stopping import SettingScores
from momkd_ray.crossval.search import Search
from momkd_ray.crossval.tune_trials import build_tuner
from momkd_ray.errors import RunError

OF_RAY = (
    "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: a52e) was "
    "22.44GB used / 23.54GB limit (0.953150)\nRefer to the documentation on how to address the out of memory issue"
)


def test_the_fold_is_resumed_and_at_last_told_in_one_sentence(tiny_config: Config, no_cluster: None) -> None:
    inputs = inputs_of(tiny_config)
    search = Search(tiny_config)
    build_tuner(inputs, search, SettingScores(inputs, search), iter(()), threads={}, limit=lambda: 1, callbacks=[])
    lost, error = Mock(), OutOfMemoryError(OF_RAY)
    task = SimpleNamespace(_tracked_actor=SimpleNamespace(actor_id=1, _on_error=None), _on_error=lost)
    RayActorManager._actor_task_failed(Mock(), tracked_actor_task=task, exception=error)
    (_, told_to_tune), _ = lost.call_args
    assert isinstance(told_to_tune, RayActorError)
    result = SimpleNamespace(error=told_to_tune, metrics=None)
    with pytest.raises(
        RunError, match=r"memory of its machine was full \(22.44GB used / 23.54GB\).*cpus_per_worker"
    ) as told:
        _raise_failures([result], inputs, 5)
    assert "\n" not in str(told.value)
