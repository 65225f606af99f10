"""Weights & Biases: a complete record a fold, no key in any file, and no run that its failures stop."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import changed, crossval

from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection

pytest.importorskip("wandb", reason="wandb is not installed: pip install -e '.[wandb]'")
KEY = "0123456789" * 4
CLOSED = "http://127.0.0.1:1"
BLOCK = 32768


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no .netrc


def records(path: Path) -> Iterator[Any]:
    """The records of a file of the client: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, part = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # all of a record, or its end
            yield Record.FromString(record)
            record = b""


def test_each_fold_has_a_complete_record_and_watching_changes_no_result(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "records"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracked = changed(tiny_config, watch__wandb="project")
    assert tracked.answer_fingerprint() == tiny_config.answer_fingerprint()
    crossval(tracked)
    told = {}
    for path in (tmp_path / "records").glob("wandb/offline-run-*/run-*.wandb"):
        found = list(records(path))
        [run] = [record.run for record in found if record.HasField("run")]
        points = [
            {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for record in found
            if record.HasField("history")
        ]
        assert run.project == "project"
        assert found[-1].HasField("exit")
        told[run.display_name] = [point["loss_total"] for point in points if "loss_total" in point]
    trained = {}
    for fold in range(2):
        lines = (Path(tiny_config.run.dir) / f"fold={fold}" / "metrics.jsonl").read_text().splitlines()
        trained[f"fold={fold}"] = [pytest.approx(json.loads(line)["loss_total"]) for line in lines]
    assert told == trained
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    written = [path for top in (tmp_path, logs) for path in top.rglob("*") if path.is_file()]
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_service_that_goes_away_costs_a_run_a_note(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    from momkd_ray.crossval import wandb_callback

    said: list[str] = []
    monkeypatch.setattr(ProgressReporter, "info", lambda self, told: said.append(told))
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_callback, "UPLOAD_TIMEOUT_S", 3)
    monkeypatch.setattr(wandb_callback, "_check", lambda *arguments: None)  # it was there when the run began
    config = changed(tiny_config, watch__wandb="project", train__epochs=1)
    crossval(config)
    [sentence] = [told for told in said if "Weights & Biases" in told]
    assert "the run continues without it" in sentence
    assert KEY not in sentence
    [tracker] = wandb_callback.wandb_trackers(config, ProgressReporter(), "0")
    assert KEY.encode() not in cloudpickle.dumps(tracker)  # as Tune does


@pytest.mark.parametrize(
    ("project", "variables", "sentence"),
    [
        ("project", {}, r"watch\.wandb project cannot be used: there is no API key; set WANDB_API_KEY"),
        ("project", {"WANDB_API_KEY": "short"}, r"cannot be used: .*40.*; set WANDB_API_KEY"),
        ("project", {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": CLOSED}, r"cannot be used: .*127\.0\.0\.1:1.*WANDB_BASE"),
        ("project", {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "nowhere"}, r"WANDB_BASE_URL cannot be used: .*valid URL"),
        ("a/b", {"WANDB_MODE": "offline"}, r"watch\.wandb cannot be used: .*a/b"),
        ("project", {"WANDB_MODE": "off"}, r"WANDB_MODE is off; set it to one of online, offline"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_trained(
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    project: str,
    variables: dict[str, str],
    sentence: str,
) -> None:
    from momkd_ray.crossval.wandb_callback import wandb_trackers

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=sentence) as refused:
        wandb_trackers(changed(tiny_config, watch__wandb=project), ProgressReporter(), "0")
    assert KEY not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_offline_records_need_a_folder_of_this_machine(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from momkd_ray.crossval.wandb_callback import wandb_trackers

    config = changed(tiny_config, watch__wandb="project", run__dir="s3://bucket/run")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(InputError, match=r"in s3://bucket/run: set WANDB_DIR"):
        wandb_trackers(config, ProgressReporter(), "0")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert len(wandb_trackers(config, ProgressReporter(), "0")) == 1
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_trackers(config, ProgressReporter(), "0") == []
