"""What a running fold tells: gauges at the metrics port, the Grafana dashboard over them, TensorBoard and MLflow."""

from __future__ import annotations

import json
import re
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import fold_tasks
from support.runs import changed, crossval
from support.tiny_config import config_of
from tensorboardX.proto.event_pb2 import Event

from momkd_ray.config.load import Config, load_config
from momkd_ray.config.sections import MemoryConfig
from momkd_ray.errors import InputError
from momkd_ray.model.memory import MomentumMemory
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.train.prometheus import GAUGES, GaugeReporter, used_component_share

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "jobs" / "grafana.json").read_text())
QUERIES = {panel["title"]: target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
ELSEWHERE = {"momkd_all_reduce_seconds", "momkd_gpu_memory_bytes"}  # only with several workers, only with a GPU
COMMON_TAGS = {"run", "fold", "setting"}
trained_at: list[float] = []  # when the watched worker did the last thing of which it tells


@pytest.fixture(scope="module")
def watched(ray_cluster: Connection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the metrics port of a node whose worker has trained a fold and still lives."""
    import ray

    task = fold_tasks.fold_task(tmp_path_factory.mktemp("watched"))

    @ray.remote(num_cpus=0)
    class Worker:
        def train(self) -> None:
            from momkd_ray.train.collectives import SingleProcess
            from momkd_ray.train.worker import FoldTraining

            self.training = FoldTraining(task, SingleProcess())  # as train_loop_per_worker does, but the worker stays
            progress = self.training.begin()
            for _ in range(2):
                self.training.run_epoch(progress)

    ray.cloudpickle.register_pickle_by_value(fold_tasks)  # workers cannot import the tests
    worker = Worker.remote()
    ray.get(worker.train.remote())
    trained_at.append(time.monotonic())
    [node] = [node for node in ray.nodes() if node["Alive"]]
    address = f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    # a report of the first epoch may come before that of the last
    soon(
        lambda: ("momkd_epoch", 2.0) in {(name, value) for name, _, value in series(page(f"http://{address}/metrics"))}
    )
    yield address
    ray.kill(worker)
    ray.cloudpickle.unregister_pickle_by_value(fold_tasks)


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return str(answer.read().decode())


def soon(condition: Any, seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return value


def series(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each gauge of the watched run in what Prometheus would scrape."""
    found = re.findall(r"^ray_(momkd_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
    told = [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for name, labels, value in found]
    return [one for one in told if "/watched" in one[1]["run"]]  # other tests train on the same node


def test_the_metrics_port_has_the_gauges_of_a_training(watched: str) -> None:
    soon(lambda: {name for name, _, _ in series(page(f"http://{watched}/metrics"))} >= {*GAUGES} - ELSEWHERE)
    told = series(page(f"http://{watched}/metrics"))
    assert {name for name, _, _ in told} == {*GAUGES} - ELSEWHERE
    for name, labels, value in told:
        assert COMMON_TAGS | {*GAUGES[name].tags} <= labels.keys()
        assert (labels["fold"], labels["setting"]) == ("0", "0")
        assert value >= 0
    by_name: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in told:
        by_name.setdefault(name, []).append((labels, value))
    terms = {labels["term"] for labels, _ in by_name["momkd_loss"]}
    assert terms == {"ce", "memory", "align_slide", "align_omics", "reconstruction", "total"}
    assert {labels["split"] for labels, _ in by_name["momkd_auc"]} == {"train", "validation"}
    assert {labels["class"] for labels, _ in by_name["momkd_memory_use"]} == {"negative", "positive"}
    assert [value for _, value in by_name["momkd_epoch"]] == [2.0]
    assert all(0 <= value <= 1 for _, value in by_name["momkd_input_wait_share"])


def test_every_panel_asks_for_gauges_that_are_exported() -> None:
    asked: set[str] = set()
    for title, query in QUERIES.items():
        [(by, name, selected)] = re.findall(r"^\w+ by \(([\w, ]+)\) \(ray_(\w+)\{(.*)\}\)$", query)
        assert name in GAUGES, title
        assert {*by.split(", ")} <= COMMON_TAGS | {*GAUGES[name].tags}, title
        assert selected == 'run=~"$run", fold=~"$fold"', title
        asked.add(name)
    assert asked == {*GAUGES}
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert {"run", "fold"} < variables.keys()
    for name in ("run", "fold"):
        [(gauge, label)] = re.findall(r"^label_values\(ray_(\w+?)(?:\{.*\})?, (\w+)\)$", variables[name]["definition"])
        assert gauge in GAUGES and label == name


@pytest.fixture
def prometheus(watched: str, tmp_path: Path) -> Iterator[str]:
    """Prometheus's address, scraping the node."""
    if not (binary := shutil.which("prometheus")):
        pytest.skip("prometheus is not installed (on Debian: apt-get install prometheus)")
    (tmp_path / "p.yml").write_text(
        f"scrape_configs: [{{job_name: ray, scrape_interval: 1s, static_configs: [{{targets: ['{watched}']}}]}}]"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [
            *(binary, f"--config.file={tmp_path / 'p.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"),
            f"--web.listen-address={address}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield address
    process.terminate()
    process.wait(timeout=60)


def test_prometheus_answers_every_panel(prometheus: str) -> None:
    def answer(query: str) -> list[Any]:
        query = query.replace("$run", ".+").replace("$fold", "0")
        try:
            text = page(f"http://{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        except urllib.error.HTTPError:
            raise
        except OSError:  # not up yet
            return []
        rows: list[Any] = json.loads(text)["data"]["result"]
        return rows

    soon(lambda: answer(QUERIES["AUC"]))
    for title, query in QUERIES.items():
        expected = not any(name in query for name in ELSEWHERE)
        assert bool(answer(query)) == expected, title


def test_nothing_is_told_where_ray_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("momkd_ray.train.prometheus._ray_is_initialised", lambda: False)
    watch = GaugeReporter("runs/pr", fold=1, setting=3, rank=0, classes=("no", "yes"))
    memory = MomentumMemory(MemoryConfig(components=4), 2, 8)
    watch.record_step([], time.monotonic(), 0.0)
    watch.record_epoch({"epoch": 0, "loss_ce": 1.0, "train_auc": None}, memory, torch.nn.Linear(1, 1))
    assert watch.tags == {"run": "runs/pr", "fold": "1", "setting": "3"}
    assert not watch._gauges and watch._reporter is None


def test_components_that_all_but_died_out_are_not_in_use() -> None:
    memory = MomentumMemory(MemoryConfig(components=4), 2, 8)
    assert used_component_share(memory) == [1.0, 1.0]
    memory.mass_YK[1] = torch.tensor([0.97, 0.01, 0.01, 0.01])
    assert used_component_share(memory) == [1.0, 0.25]
    assert used_component_share(MomentumMemory(MemoryConfig(rule="fixed"), 2, 8)) == []


def curves_of(file: Path) -> dict[str, list[int]]:
    """The steps at which each tag of a TensorBoard file has a value."""
    content, at, steps = file.read_bytes(), 0, defaultdict(list)
    while at < len(content):  # a record is its length, a checksum, an event, a checksum
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        for value in event.summary.value:
            steps[value.tag].append(event.step)
        at += length + 16
    return steps


@dataclass(frozen=True)
class Followed:
    """A finished cross-validation that MLflow has recorded in a database whose name is secret."""

    config: Config
    uri: str
    secret: str

    @property
    def run(self) -> Path:
        return Path(self.config.run.dir)


@pytest.fixture(scope="module")
def followed(ray_cluster: Connection, tiny_cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Followed:
    for needed in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install -e '.[test]'")
    folder, secret = tmp_path_factory.mktemp("followed"), "s3cr3tpw"
    uri = f"sqlite:///{folder}/{secret}.db"  # in its path, to be found by this name
    config = changed(config_of(tiny_cohort_dir, folder / "run"), watch__mlflow="$TRACKING")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TRACKING", uri)
        crossval(config)
    return Followed(config, uri, secret)


@pytest.mark.slow
def test_tensorboard_lists_the_epochs_of_a_run_by_fold(followed: Followed) -> None:
    events = sorted(Path(followed.run, "tune").glob("*/events.out.tfevents.*"))
    names = [event.parent.name for event in events]
    assert names == ["fold=0", "fold=1"]
    for event in events:
        steps = curves_of(event)
        # a point an epoch, and none of the fold's end
        assert steps["ray/tune/val_auc"] == steps["ray/tune/loss_align_slide"] == [1, 2]


@pytest.mark.slow
def test_mlflow_has_a_run_a_fold_and_watching_changes_no_result(followed: Followed) -> None:
    from mlflow import MlflowClient

    unwatched = changed(followed.config, watch__mlflow=None)
    assert followed.config.answer_fingerprint() == unwatched.answer_fingerprint()
    client = MlflowClient(tracking_uri=followed.uri)
    experiment = client.get_experiment_by_name(str(followed.run))
    assert experiment is not None
    runs = sorted(client.search_runs([experiment.experiment_id]), key=lambda run: run.data.params["fold"])
    assert [run.data.params["fold"] for run in runs] == ["0", "1"]
    for fold, run in enumerate(runs):
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"fold={fold}"
        assert run.data.tags["label"] == "LABEL"
        lines = (followed.run / f"fold={fold}" / "metrics.jsonl").read_text().splitlines()
        told = [point.value for point in client.get_metric_history(run.info.run_id, "loss_total")]
        assert told == [json.loads(line)["loss_total"] for line in lines]


@pytest.mark.slow
def test_mlflow_that_cannot_be_reached_is_told_before_anything_is_trained(
    tiny_config: Config, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e '.[mlflow]'")
    config = changed(tiny_config, watch__mlflow="$TRACKING")
    with pytest.raises(InputError, match=r"\$TRACKING, but this environment variable is not set"):
        crossval(config)
    monkeypatch.setenv("TRACKING", "http://user:s3cr3tpw@127.0.0.1:1")
    with pytest.raises(InputError, match=r"watch\.mlflow http://\*\*\*@127\.0\.0\.1:1 cannot be used") as refused:
        crossval(config)
    assert "s3cr3tpw" not in str(refused.value)
    assert not list(Path(tiny_config.run.dir).glob("fold=*/metrics.jsonl"))


@pytest.mark.slow
def test_a_password_for_mlflow_comes_from_a_variable_and_is_written_nowhere(followed: Followed) -> None:
    assert (followed.run.parent / f"{followed.secret}.db").exists()
    files = [path for path in followed.run.rglob("*") if path.is_file()]
    assert [path for path in files if followed.secret.encode() in path.read_bytes()] == []
    assert "mlflow: $TRACKING" in (followed.run / "run.yaml").read_text()


def test_mlflow_that_goes_away_does_not_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install -e '.[mlflow]'")
    from ray import cloudpickle

    from momkd_ray.crossval.mlflow_callback import _Tracker

    said: list[str] = []
    progress = ProgressReporter()
    monkeypatch.setattr(progress, "info", said.append)
    tracker = _Tracker("http://127.0.0.1:1", experiment_name="run")
    tracker.progress = progress
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # of MLflow's server there is only its absence here: the first request fails as it would when it is gone
    tracker.mlflow_util._mlflow.set_tracking_uri("http://127.0.0.1:1")
    tracker._trial_runs, tracker.tags = {}, {}
    for _ in range(3):
        tracker.log_trial_start(None)
    [sentence] = said
    assert "the run continues without it" in sentence
    cloudpickle.loads(cloudpickle.dumps(tracker))  # as Tune does


def test_asking_for_mlflow_without_having_it_is_told(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(tiny_config.to_yaml())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"momkd-ray\[mlflow\]"):
        load_config(path, ["watch.mlflow=http://mlflow:5000"])
    with pytest.raises(InputError, match=r"momkd-ray\[wandb\]"):
        load_config(path, ["watch.wandb=project"])


def test_gauges_stay_while_nothing_new_happens(watched: str) -> None:
    time.sleep(max(0.0, trained_at[0] + 22 - time.monotonic()))  # Ray drops a gauge that is not set again for 20 s
    assert {name for name, _, _ in series(page(f"http://{watched}/metrics"))} == {*GAUGES} - ELSEWHERE
