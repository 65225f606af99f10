"""What Ray Train's controller and its helpers are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.dashboard.utils import get_address_for_submission_client
from ray.train.v2._internal.constants import get_env_vars_to_propagate

from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.train.ray_train_hooks import tell_cluster_address


def controller_class() -> Any:
    """As Ray Train's controller with the watch over it: an actor that starts an actor."""

    class Helper:
        def state_service(self) -> str:
            return get_address_for_submission_client(None)

    class Controller:
        def state_service(self) -> str:
            return str(ray.get(ray.remote(num_cpus=0)(Helper).remote().state_service.remote()))

    return Controller


def test_helpers_of_ray_train_ask_their_own_cluster_whatever_another_has_left_behind(
    ray_cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # of a `ray start` that was killed
    monkeypatch.setenv("RAY_ADDRESS", "")
    tell_cluster_address()
    variables = get_env_vars_to_propagate() | {"RAY_TMPDIR": str(tmp_path)}
    controller = ray.remote(num_cpus=0, runtime_env={"env_vars": variables})(controller_class()).remote()
    assert ray.get(controller.state_service.remote(), timeout=60) == ray_cluster.dashboard
