"""The whole way over HTTP from S3 to S3: faults change nothing, an outage ends in one sentence, and nothing is torn."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from support.runs import comparable, crossval, finished, momkd, saved
from support.s3 import FaultyProxy, S3Server

from momkd_ray.bags.store import BagStore
from momkd_ray.config.load import Config
from momkd_ray.ray_runtime.cluster import Connection

pytestmark = pytest.mark.slow
IMPATIENT = {"MOMKD_RAY_S3_PATIENCE_S": "2"}


@pytest.fixture
def remote(tiny_config: Config, s3_server: S3Server, s3_proxy: FaultyProxy) -> Config:
    """The tiny cohort and its run on S3, where every epoch reads the store's row groups over HTTP."""
    cohort = Path(tiny_config.features.dir).parent
    for path in (p for p in cohort.rglob("*") if p.is_file()):
        s3_server.client.upload_file(str(path), s3_server.bucket, f"cohort/{path.relative_to(cohort)}")
    tree = tiny_config.model_dump(mode="json")
    for name in ("clinical", "slides", "omics"):
        tree["cohort"][name] = f"{s3_server.uri}/cohort/{Path(tree['cohort'][name]).name}"
    tree["features"]["dir"] = f"{s3_server.uri}/cohort/features"
    tree["store"] |= {"memory_share": 0.0, "cache": {"gb": 0}}  # every epoch reads over HTTP
    tree["run"]["dir"] = f"{s3_server.uri}/run"
    return Config.model_validate(tree)


def failed(*arguments: str) -> str:
    """The last line of a command that must end with exit code 3."""
    process = momkd(*arguments, variables=IMPATIENT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 3, output
    assert "Traceback" not in output
    return output.strip().splitlines()[-1]


def test_outages_end_in_one_sentence_and_under_faults_the_same_command_ends_like_one_on_a_disk(
    tiny_config: Config,
    remote: Config,
    tmp_path: Path,
    s3_server: S3Server,
    s3_proxy: FaultyProxy,
    ray_cluster: Connection,
) -> None:
    config = str(saved(remote, tmp_path))
    s3_proxy.inject("status", path=r"run/bags/part-", method="PUT", spared=3)
    sentence = failed("ingest", "--config", config)
    assert sentence.startswith("momkd-ray: ")
    assert "503" in sentence or "SlowDown" in sentence
    assert "part-" in sentence
    parts = [key for key in s3_server.keys if "/bags/part-" in key]
    assert len(parts) == 3, "three parts were written whole before the outage, and no manifest"
    assert {key for key in s3_server.keys if "/bags/" in key} == {*parts, "run/bags/.lease.json"}

    s3_proxy.heal()
    reading = s3_proxy.inject("reset", path=r"run/bags/part-", method="GET", spared=70)
    sentence = failed("crossval", "--config", config)
    assert reading.injected
    assert "could not read" in sentence
    store = BagStore.open(f"{s3_server.uri}/run/bags")
    assert set(parts) < {f"run/bags/{part}" for part in store.slides["part"]}, "what was written before is kept"
    keys = s3_server.keys
    assert not {"run/metrics.json", "run/predictions.parquet", "run/report.html"} & set(keys)
    for key in (key for key in keys if key.endswith(".jsonl")):
        body = s3_server.client.get_object(Bucket=s3_server.bucket, Key=key)["Body"].read().decode()
        assert [json.loads(line)["epoch"] for line in body.splitlines()] == list(range(len(body.splitlines())))

    s3_proxy.heal()
    faults = [
        s3_proxy.inject("status", every=9),
        s3_proxy.inject("reset", every=17),
        s3_proxy.inject("cut", every=23, method="GET", at_byte=100),
        s3_proxy.inject("trickle", every=29, method="GET", seconds=0.2),
    ]
    finished(momkd("crossval", "--config", config))
    assert all(fault.injected >= 3 for fault in faults), faults
    assert s3_proxy.count("GET", r"bags/part-") > 100, "every epoch reads the bags over HTTP"
    s3_proxy.heal()
    crossval(tiny_config)
    metrics, predictions = comparable(f"{s3_server.uri}/run")
    expected, expected_predictions = comparable(tiny_config.run.dir)
    assert metrics == expected
    pd.testing.assert_frame_equal(predictions, expected_predictions)
    written = {"report.html", "fold=0/model/model.json", "bags/manifest.json", "fold=1/steps/epoch=0000.parquet"}
    assert written <= {key.removeprefix("run/") for key in s3_server.keys}
