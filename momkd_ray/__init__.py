"""MoMKD (Momentum Memory Knowledge Distillation, CVPR 2026): trained, cross-validated and applied on Ray.

The public names are imported when they are first used, so that `import momkd_ray` imports neither PyTorch nor Ray. The
verbs are called `cross_validate` and `predict_slides`, because `momkd_ray.crossval` and `momkd_ray.predict` are
packages.

>>> import momkd_ray
>>> momkd_ray.load_config.__module__
'momkd_ray.config.load'
>>> sorted(momkd_ray.__all__)
['Cohort', 'Config', 'MoMKD', 'cross_validate', 'load_bundle', 'load_config', 'predict_slides']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from momkd_ray.api import cross_validate, predict_slides
    from momkd_ray.cohort.cohort import Cohort
    from momkd_ray.config.load import Config, load_config
    from momkd_ray.model.bundle import load_bundle
    from momkd_ray.model.momkd import MoMKD

__version__ = "0.1.0"
__all__ = ["Cohort", "Config", "MoMKD", "cross_validate", "load_bundle", "load_config", "predict_slides"]

_MODULES = {
    "Cohort": "momkd_ray.cohort.cohort",
    "Config": "momkd_ray.config.load",
    "MoMKD": "momkd_ray.model.momkd",
    "cross_validate": "momkd_ray.api",
    "load_bundle": "momkd_ray.model.bundle",
    "load_config": "momkd_ray.config.load",
    "predict_slides": "momkd_ray.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
