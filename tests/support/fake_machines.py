"""Machines for Ray's autoscaler that are processes of this one."""

from __future__ import annotations

from functools import partial
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class FakeMachines(FakeMultiNodeProvider):  # type: ignore[misc]  # Ray carries no types
    """Ray's own fake provider, but each machine keeps what jobs upload in a folder of its own.

    Left in one folder, each new machine would replace the working directory of the jobs that run.
    """

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        with self.lock:
            parameters = ray._private.parameter.RayParams
            folder = f"uploads-{self._next_node_id}"
            ray._private.parameter.RayParams = partial(parameters, runtime_env_dir_name=folder)
            try:
                super()._create_node_with_resources_and_labels(*arguments)
            finally:
                ray._private.parameter.RayParams = parameters
