"""What Ray Train's controller is taught: which failures end a fold, and that a worker may die of too little memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from ray import train
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from momkd_ray.errors import input_error_within, run_error_within


class NoRetryOnKnownErrors(train.UserCallback):  # type: ignore[misc]  # Ray carries no types
    """Raises in the controller, which then does not start the workers again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Workers failed."""
        for error in worker_exceptions.values():
            if known := input_error_within(error) or run_error_within(error):
                raise known


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Leave the process group, of which nothing may be left."""
        try:
            super().on_shutdown(worker_group, backend_config)
        except OutOfMemoryError:
            # of all the ways in which a worker can be gone, Ray Train 2.60 takes this one for its own failure: it would
            # end the fold, and leave behind the placement group for which the next try then waits without end
            logging.getLogger(__name__).warning("a worker died of too little memory")


@dataclass
class Torch(TorchConfig):  # type: ignore[misc]
    """DDP as Ray Train sets it up, ended without complaint when workers died of too little memory."""

    @property
    def backend_cls(self) -> type[_Backend]:
        """The backend above."""
        return _Backend
