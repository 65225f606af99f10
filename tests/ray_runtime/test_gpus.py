"""`cluster.gpus_per_worker: auto` takes the GPUs that there are; what it became is told and recorded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.finished_runs import write_run
from support.runs import inputs_of

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.errors import RunError
from momkd_ray.ray_runtime import gpus
from momkd_ray.ray_runtime.gpus import choose_gpus
from momkd_ray.report.finished_run import read_finished_run
from momkd_ray.report.methods import methods_block
from momkd_ray.run.layout import RunDirectory
from momkd_ray.train.collectives import device_of_worker

CASES = [
    # workers, GPUs, own, usable by PyTorch, GPUs of a worker, what is told
    (1, 0, True, False, 0, "this machine has no GPU"),
    (1, 0, False, False, 0, "the cluster has no GPU"),
    (1, 1, True, True, 1, "this machine has 1"),
    (1, 4, False, False, 1, "the cluster has 4"),
    (1, 1, True, False, 0, "PyTorch cannot use this machine's GPU; `momkd-ray doctor` tells why"),
    (4, 2, False, True, 0, "set cluster.workers to 2 to use them"),
    ([2, 4], 2, False, True, 1, "the cluster has 2"),
]


@pytest.mark.parametrize(("workers", "there", "own", "usable", "chosen", "told"), CASES)
def test_a_gpu_for_each_worker_where_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, workers: object, there: float, own: bool, usable: bool, chosen: float, told: str
) -> None:
    monkeypatch.setattr(gpus, "_gpus_of_cluster", lambda: there)
    monkeypatch.setattr(gpus, "_usable_here", lambda: usable)
    cluster, sentence = choose_gpus(ClusterConfig.model_validate({"workers": workers}), own=own)
    assert (cluster.gpus_per_worker, cluster.gpus) == (chosen, chosen)
    assert told in sentence
    assert sentence.startswith("Every worker trains on a GPU" if chosen else "Folds are trained on CPUs: ")


@pytest.mark.parametrize("number", [0, 0.5, 2])
def test_a_number_stays(monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    monkeypatch.setattr(gpus, "_gpus_of_cluster", lambda: 8.0)
    asked = ClusterConfig(gpus_per_worker=number)
    assert choose_gpus(asked, own=False) == (asked, "")


def test_a_worker_whose_gpu_pytorch_cannot_use_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RunError, match=r"PyTorch .* cannot use there: install .* cluster\.gpus_per_worker to 0"):
        device_of_worker(1)


_ON_A_CLUSTER = """
from ray.cluster_utils import Cluster
import ray
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.crossval.tune_trials import trial_resources
from momkd_ray.ray_runtime.cluster import concurrent_folds
from momkd_ray.ray_runtime.gpus import choose_gpus
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
cluster.add_node(num_cpus=1, num_gpus=2)
ray.init(cluster.address, log_to_driver=False)
chosen, told = choose_gpus(ClusterConfig(), own=False)
print(told)
print(trial_resources(chosen), concurrent_folds(chosen, own=False))
"""


@pytest.mark.slow
def test_a_node_with_gpus_as_a_resource_is_taken() -> None:
    done = subprocess.run([sys.executable, "-c", _ON_A_CLUSTER], text=True, capture_output=True, timeout=120)
    assert done.stdout.splitlines() == [
        "Every worker trains on a GPU of its own (cluster.gpus_per_worker is auto, and the cluster has 2)",
        "{'cpu': 1, 'gpu': 1.0} 2",
    ], done.stderr


def test_what_auto_became_is_in_the_report(tmp_path: Path) -> None:
    location = write_run(tmp_path, folds=2)
    figures = storage.read_json(f"{location}/metrics.json")
    for fold in figures["folds"]:
        fold |= {"device": "CPU", "precision": "bf16", "epochs": 1}
    storage.write_json(f"{location}/metrics.json", figures)
    tree = yaml.safe_load(storage.read_text(f"{location}/run.yaml"))
    storage.write_text(f"{location}/run.yaml", yaml.safe_dump(tree | {"train": tree["train"] | {"precision": "auto"}}))
    shown = dict(methods_block(read_finished_run(RunDirectory(location)), []))
    assert shown["Precision"] == "bf16 (auto)"
    assert shown["Trained on"] == "CPU"


def test_provenance_has_the_number_of_gpus(tiny_config: Config, no_cluster: None) -> None:
    inputs = inputs_of(tiny_config)
    from momkd_ray.run.provenance import claim_directory

    claim_directory(inputs, gpus_per_worker=1.0)
    assert storage.read_json(inputs.directory.provenance)["gpus_per_worker"] == 1.0
