"""cluster.yaml against Ray's own schema and its autoscaler's own choice of machines."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).parents[1]
GPU_FOLD = {"CPU": 1, "GPU": 1}


@pytest.fixture
def cluster() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return tree


def check(tree: dict[str, Any]) -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(tree)
    validate_config(prepared)
    return prepared


def started(
    cluster: dict[str, Any], demand: dict[str, float], times: int = 1, refused: Sequence[str] = ()
) -> dict[str, int]:
    """What Ray's autoscaler would start for bundles of resources; `refused` types could not be had lately."""
    config = AutoscalingConfig(check(cluster))
    bundles = [ResourceRequestUtil.make(demand)] * times
    availability = dict.fromkeys(refused, 0.0)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count(bundles),
        recoverable_resource_availabilities=availability,
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    prepared = check(cluster)
    commands = "\n".join(prepared["head_setup_commands"] + prepared["worker_setup_commands"])
    assert "wheels" not in commands, "a default of Ray that installs another version was left in"
    assert not prepared["docker"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree.update(idle_timeout_minute=5),
        lambda tree: tree["available_node_types"]["gpu_spot"].update(max_worker=3),
        lambda tree: tree["available_node_types"]["gpu_spot"].update(max_workers="many"),
        lambda tree: tree["available_node_types"]["gpu_spot"].pop("node_config"),
        lambda tree: tree.update(head_node_type="heed"),
        lambda tree: tree["available_node_types"]["cpu_spot"].update(min_workers=99),
    ],
)
def test_the_same_check_refuses_a_typo(cluster: dict[str, Any], spoil: Callable[[dict[str, Any]], None]) -> None:
    spoil(cluster)
    with pytest.raises((ValidationError, ValueError)):
        check(cluster)


def test_types_fit_together(cluster: dict[str, Any]) -> None:
    types = check(cluster)["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert head["max_workers"] == head["min_workers"] == 0
    assert head["resources"] == {"CPU": 0}, "no training on the head"
    assert "InstanceMarketOptions" not in head["node_config"]
    assert sum(one["max_workers"] for one in types.values()) == cluster["max_workers"]
    for name, one in types.items():
        assert 0 == one["min_workers"] < one["max_workers"], name
        spot = one["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert spot == name.endswith("_spot")


def test_every_machine_has_image_access_and_profile(cluster: dict[str, Any]) -> None:
    configs = [one["node_config"] for one in cluster["available_node_types"].values()]
    for key in ("ImageId", "SecurityGroupIds", "IamInstanceProfile"):
        assert all("REPLACE-ME" in str(config[key]) for config in configs), f"{key} is the user's to fill in"
    assert len({config["ImageId"] for config in configs}) == 1


def test_folds_take_spot_gpus_first_and_then_the_fallback(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert types["gpu_spot"]["resources"] == types["gpu_on_demand"]["resources"]
    most, whole = types["gpu_spot"]["max_workers"], types["gpu_spot"]["resources"]
    assert started(cluster, GPU_FOLD) == {"gpu_spot": 1}
    assert started(cluster, GPU_FOLD, refused=["gpu_spot"]) == {"gpu_on_demand": 1}
    assert started(cluster, whole, times=most + 1) == {"gpu_spot": most, "gpu_on_demand": 1}


def test_ingest_takes_no_gpu(cluster: dict[str, Any]) -> None:
    assert set(started(cluster, {"CPU": 1}, times=8)) == {"cpu_spot"}


def test_ray_is_pinned_to_a_version_the_project_takes(cluster: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    install = next(c for c in cluster["setup_commands"] if "pip install" in c)
    pinned = Requirement(install.split('"')[1])
    assert pinned.name == "ray"
    assert pinned.extras == wanted.extras
    [exactly] = pinned.specifier
    assert exactly.operator == "=="
    assert exactly.version in wanted.specifier
    [mount] = cluster["file_mounts"]
    assert mount.rsplit("/", 1)[1] in install.split('"')[2], "the copied project is what is installed"
