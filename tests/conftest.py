"""One tiny generated cohort for the whole session, and a configuration on it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from support.runs import without_cluster
from support.s3 import quick, s3_client, s3_endpoint, s3_proxy, s3_server, small_parts  # noqa: F401  # fixtures
from support.tiny_config import config_of
from support.unrendered import unrendered  # noqa: F401  # a fixture

from momkd_ray.config.load import Config
from momkd_ray.config.sections import SyntheticConfig
from momkd_ray.ray_runtime.cluster import Connection, connect
from momkd_ray.ray_runtime.own_cluster import DASHBOARD_VARIABLE
from momkd_ray.synthetic.cohort import generate_cohort

# commands that tests run start dozens of clusters, and nobody looks at their dashboards
os.environ.setdefault(DASHBOARD_VARIABLE, "0")

# on a busy machine a single example may take any time
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def collectable() -> Iterator[None]:
    """What a verb kept from the garbage collector is collected as the process ends, where Triton looks for leaks."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_cohort_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "tiny"
    generate_cohort(SyntheticConfig(dir=str(folder), patients=24, patches=30, width=16, genes=30, seed=7))
    return folder


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_cohort_dir: Path) -> Config:
    return config_of(tiny_cohort_dir, tmp_path / "run")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Connection]:
    """One embedded Ray for all the tests that need one, with its dashboard."""
    with pytest.MonkeyPatch.context() as monkeypatch, ExitStack() as stack:
        monkeypatch.setenv(DASHBOARD_VARIABLE, "1")
        connection = stack.enter_context(connect())
        monkeypatch.undo()
        yield connection


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel work runs in this process, whatever cluster another test has started."""
    without_cluster(monkeypatch)
