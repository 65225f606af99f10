"""cluster.yaml against Ray's own schema and its autoscaler's own choice of machines; jobs/kuberay.yaml beside it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from packaging.requirements import Requirement
from packaging.version import Version
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

ROOT = Path(__file__).parents[2]
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
    config = AutoscalingConfig(check(cluster | {"file_mounts": {}}))  # it reads the files, which nobody has made here
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
    install = next(c for c in cluster["setup_commands"] if "ray[" in c)
    pinned = Requirement(install.split('"')[1])
    assert pinned.name == "ray"
    assert pinned.extras == wanted.extras
    [exactly] = pinned.specifier
    assert exactly.operator == "=="
    assert exactly.version in wanted.specifier
    # what is installed is the wheel of this version, copied there
    [(mount, source)] = cluster["file_mounts"].items()
    wheel = install.split('"')[2].strip()
    assert wheel == f"~/{source}/momkd_ray-{project['version']}-py3-none-any.whl"
    assert mount == f"/home/{cluster['auth']['ssh_user']}/{source}"


TEXT, FLAG, OBJECT = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(required: str, optional: dict[str, Any]) -> dict[str, Any]:
    """A schema of an object with these fields and no others; those named in `required` have to be there."""
    schema = {"type": "object", "properties": optional, "additionalProperties": False}
    return schema | {"required": required.split()}


# The fields that the job uses, with the types of KubeRay's API reference; pods are Kubernetes' own. (They and the
# account were validated strictly against the schemas of Kubernetes 1.28, 1.31 and 1.37, which take 100 MB.)
POD = fields("spec", {"spec": OBJECT, "metadata": OBJECT})
GROUP = {"rayStartParams": TEXTS, "template": POD}
RAYCLUSTER = fields(
    "headGroupSpec",
    {
        "rayVersion": TEXT,
        "authOptions": fields("mode", {"mode": {"enum": ["disabled", "token"]}, "secretName": TEXT}),
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": fields(
            "",
            {
                "version": {"enum": ["v1", "v2"]},
                "idleTimeoutSeconds": COUNT,
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "securityContext": OBJECT,
                "resources": OBJECT,
            },
        ),
        "headGroupSpec": fields(
            "rayStartParams template",
            GROUP | {"serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, "enableIngress": FLAG},
        ),
        "workerGroupSpecs": {
            "type": "array",
            "items": fields(
                "groupName minReplicas maxReplicas rayStartParams template",
                GROUP
                | {"groupName": TEXT, "numOfHosts": COUNT, "idleTimeoutSeconds": COUNT}
                | dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), COUNT),
            ),
        },
    },
)
RAYJOB = fields(
    "entrypoint rayClusterSpec",
    {
        "entrypoint": TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "backoffLimit": COUNT,
        "activeDeadlineSeconds": COUNT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": COUNT,
        "runtimeEnvYAML": TEXT,
        "metadata": TEXTS,
        "suspend": FLAG,
        "submitterPodTemplate": POD,
        "rayClusterSpec": RAYCLUSTER,
    },
)


@pytest.fixture
def kuberay() -> tuple[dict[str, Any], dict[str, Any]]:
    """The service account and the job."""
    account, job = yaml.safe_load_all((ROOT / "jobs" / "kuberay.yaml").read_text())
    return account, job


def pods_of(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spec, ray = job["spec"], job["spec"]["rayClusterSpec"]
    pods = {"submitter": spec["submitterPodTemplate"]["spec"], "head": ray["headGroupSpec"]["template"]["spec"]}
    return pods | {group["groupName"]: group["template"]["spec"] for group in ray["workerGroupSpecs"]}


def test_kuberay_has_the_fields_and_types_of_the_operator(kuberay: Any) -> None:
    account, job = kuberay
    assert (account["apiVersion"], account["kind"]) == ("v1", "ServiceAccount")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    Draft202012Validator(RAYJOB).validate(job["spec"])
    # what the operator itself checks: autoscaler v2 restarts no pod, and tokens are of Ray 2.52 and later
    assert all(pod["restartPolicy"] == "Never" for pod in pods_of(job).values())
    assert Version(job["spec"]["rayClusterSpec"]["rayVersion"]) >= Version("2.52")
    assert "KubeRay 1.5.1 or later" in (ROOT / "jobs" / "kuberay.yaml").read_text()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("rayClusterSpec", "workerGroupSpecs", 0, "maxReplica"), 4),
        (("rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "4"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("rayClusterSpec", "autoscalerOptions", "version"), 2),
        (("ttlSecondsAfterFinished",), "600"),
    ],
)
def test_a_field_of_another_name_or_type_is_found(kuberay: Any, place: tuple[Any, ...], value: Any) -> None:
    at = kuberay[1]["spec"]
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    assert not Draft202012Validator(RAYJOB).is_valid(kuberay[1]["spec"])


def test_kuberay_scales_from_nothing_and_trains_nothing_on_the_head(kuberay: Any) -> None:
    ray = kuberay[1]["spec"]["rayClusterSpec"]
    assert ray["enableInTreeAutoscaling"] and ray["autoscalerOptions"]["version"] == "v2"
    assert ray["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert ray["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in ray["workerGroupSpecs"]}
    assert groups.keys() == {"cpu", "gpu"}
    for group in groups.values():
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    gpus = {
        name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
        for name, pod in pods_of(kuberay[1]).items()
    }
    assert gpus == {"submitter": 0, "head": 0, "cpu": 0, "gpu": 1}
    assert kuberay[1]["spec"]["shutdownAfterJobFinishes"]


def test_no_pod_is_root_or_holds_a_key(kuberay: Any) -> None:
    account, job = kuberay
    assert "REPLACE-ME" in account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
    for name, pod in pods_of(job).items():
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["restartPolicy"] == "Never"
        if name != "submitter":
            assert pod["serviceAccountName"] == account["metadata"]["name"]
        [container] = pod["containers"]
        security = container["securityContext"]
        assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not [one for one in container.get("env", []) if "KEY" in one["name"] or "TOKEN" in one["name"]]
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounts == {volume["name"] for volume in pod.get("volumes", [])}
    options = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    assert not options["securityContext"]["allowPrivilegeEscalation"]
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_kuberay_runs_one_image_of_the_versions_of_cluster_yaml(kuberay: Any, cluster: dict[str, Any]) -> None:
    _, job = kuberay
    [image] = {pod["containers"][0]["image"] for pod in pods_of(job).values()}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert "REPLACE-ME" in image and image.endswith(f":{version}")
    ray = job["spec"]["rayClusterSpec"]["rayVersion"]
    assert any(f"=={ray}" in command for command in cluster["setup_commands"])
    text = (ROOT / "jobs" / "kuberay.yaml").read_text()
    assert f"rayproject/ray:{ray}-py311" in text, "the comment says how the image is made"
    assert text.count(f"momkd_ray-{version}-py3-none-any.whl") == 2


def test_kuberay_runs_a_verb_that_there_is(kuberay: Any) -> None:
    import shlex

    from momkd_ray.cli import app

    program, verb, *options = shlex.split(kuberay[1]["spec"]["entrypoint"])
    assert program == "momkd-ray"
    assert verb in {command.callback.__name__ for command in app.registered_commands if command.callback}
    config = options[options.index("--config") + 1]
    [mount] = pods_of(kuberay[1])["head"]["containers"][0]["volumeMounts"]
    assert config == f"{mount['mountPath']}/config.yaml"
