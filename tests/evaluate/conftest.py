"""A finished run that the tests of an evaluation share."""

from __future__ import annotations

import pytest
from support.finished_runs import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_run(tmp_path_factory.mktemp("run"))
