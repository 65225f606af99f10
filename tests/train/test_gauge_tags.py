"""Gauges take class names and run directories of any script."""

from __future__ import annotations

import pytest
from ray.util.metrics import Gauge

from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.train.prometheus import ascii_tags


def test_tags_beyond_ascii_are_escaped_and_others_stay(ray_cluster: Connection) -> None:
    tags = {"run": "/data/Läufe/結果", "class": "阳性", "fold": "0"}
    escaped = ascii_tags(tags)
    assert escaped == {"run": "/data/L\\xe4ufe/\\u7d50\\u679c", "class": "\\u9633\\u6027", "fold": "0"}
    gauge = Gauge("momkd_test_of_tags", "A test.", tuple(tags))
    gauge.set(1.0, escaped)
    with pytest.raises(UnicodeEncodeError):
        gauge.set(1.0, tags)
