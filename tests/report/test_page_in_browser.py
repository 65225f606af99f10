"""The report in a real browser: narrow and wide, light and dark, for screen readers and keyboards."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.browser import CHROMIUM, opened
from support.finished_runs import write_run

from momkd_ray.report.page import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Path(write_report(write_run(tmp_path_factory.mktemp("run"), folds=2))).read_text()


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1600, True)])
def test_the_report_fits_its_window_and_axe_finds_nothing(page: str, width: int, dark: bool, tmp_path: Path) -> None:
    found = opened(page, width, dark=dark, folder=tmp_path)
    assert found["faults"] == []
    assert found["rules"] > 10
    assert not found["wide"]
    assert found["remote"] == []


def test_a_page_with_faults_is_caught(tmp_path: Path) -> None:
    page = '<html><body><img src="x.png"><div style="width:700px">wide</div></body></html>'
    found = opened(page, 360, dark=False, folder=tmp_path)
    assert {rule for rule, _, _ in found["faults"]} >= {"image-alt", "html-has-lang", "document-title"}
    assert found["wide"]
