"""The checks of `momkd-ray doctor`, each with a result and, where something is wrong, a cure."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from momkd_ray import storage
from momkd_ray.config.load import Config
from momkd_ray.doctor.machine import (
    OPTIONAL,
    PACKAGES,
    delete_probe,
    describe_machine,
    existing_folder,
    taken,
    write_probe,
)

Status = Literal["ok", "note", "fault"]
LEAST_MEMORY_GB = 4.0  # Ray and one worker with PyTorch
LEAST_SHM_GB = 1.0
PORTS = {6379: "ray start --head", 8265: "Ray's dashboard"}


@dataclass(frozen=True)
class Check:
    """The result of one check: `ok`, a `note` that nothing stops at, or a `fault` with its cure."""

    name: str
    status: Status
    text: str


@dataclass(frozen=True)
class Diagnosis:
    """All checks, and the machines that they looked at."""

    checks: tuple[Check, ...]
    machines: tuple[dict[str, Any], ...]

    @property
    def ok(self) -> bool:
        """Whether there is no fault."""
        return all(check.status != "fault" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for scripts."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks], "machines": list(self.machines)}

    def lines(self) -> list[str]:
        """Returns a line for each check."""
        marks = {"ok": "ok   ", "note": "note ", "fault": "FAULT"}
        return [f"{marks[check.status]} {check.name:<14} {check.text}" for check in self.checks]


def diagnose(locations: Sequence[str], config: Config | None, address: str | None) -> Diagnosis:
    """Checks this machine, the storage locations, and the nodes of a cluster if an address is given.

    Args:
        locations: folders that runs write to, local or `s3://`.
        config: whose GPUs and features are checked too.
        address: of a running Ray cluster.

    Raises:
        InputError, RunError: no cluster answers at the address.
    """
    probes: dict[str, str] = {}
    checks: list[Check] = []
    try:
        for location in dict.fromkeys(map(existing_folder, locations)):
            probe, reason = write_probe(location)
            if reason:
                checks.append(Check("storage", "fault", f"{location} cannot be written: {reason}"))
            else:
                probes[probe] = location
        here = describe_machine(list(probes))
        nodes = _nodes(address, list(probes)) if address else []
    finally:
        for probe in probes:
            delete_probe(probe)
    local = [*_software(here), *_processors(here, config), *_memory(here), *_ports(address)]
    checks = [*local, *checks, *_storage(here, probes), *_features(config), *_cluster(here, nodes, probes, config)]
    return Diagnosis(tuple(checks), (here, *nodes))


def _software(here: Mapping[str, Any]) -> Iterator[Check]:
    old = sys.version_info < (3, 11)
    yield Check("Python", "fault" if old else "ok", here["python"] + (": 3.11 or later is needed" if old else ""))
    for name in PACKAGES:
        version = here["packages"][name]
        if version is None:
            yield Check(name, "fault", "is not installed here; pip install -e . in the checkout")
        elif name in ("momkd-ray", "torch", "ray"):
            yield Check(name, "ok", version)
    if here["torch_error"]:
        yield Check("torch", "fault", f"cannot be used: {here['torch_error']}; install it again")
    missing = [f"momkd-ray[{OPTIONAL[name]}]" for name, version in here["optional"].items() if version is None]
    if missing:
        yield Check("extras", "note", f"not installed: {', '.join(missing)}")


def _processors(here: Mapping[str, Any], config: Config | None) -> Iterator[Check]:
    yield Check("CPUs", "ok", f"{here['cpus']} that this process may use")
    present, usable, build = here["gpus_present"], here["gpus_usable"], here["cuda_build"]
    if present and not usable:
        why = (
            f"this PyTorch ({here['packages']['torch']}) is built for CPUs; install one for CUDA"
            if build is None
            else f"PyTorch (CUDA {build}) cannot use them; check nvidia-smi, the driver and CUDA_VISIBLE_DEVICES"
        )
        yield Check("GPUs", "fault", f"{present} are there and unused: {why}")
    elif not usable:
        yield Check("GPUs", "ok", "none")
    else:
        yield Check("GPUs", "ok", f"{usable}: {', '.join(here['gpu_names'])} (CUDA {build})")
        if usable < present:
            yield Check("GPUs", "note", f"{present} are there, of which PyTorch sees {usable} (CUDA_VISIBLE_DEVICES)")
        if config is not None and config.cluster.gpus_per_worker == 0:
            yield Check("GPUs", "note", "the configuration uses none: set cluster.gpus_per_worker to auto")
    if config is not None and config.cluster.gpus and not usable:
        yield Check(
            "GPUs", "note", "the configuration wants GPUs and this machine has none: other nodes must have them"
        )


def _memory(here: Mapping[str, Any]) -> Iterator[Check]:
    memory = here["memory_gb"]
    if memory < LEAST_MEMORY_GB:
        yield Check("memory", "fault", f"{memory:.1f} GB, less than the {LEAST_MEMORY_GB:g} GB that a fold needs")
    else:
        yield Check("memory", "ok", f"{memory:.1f} GB")
    shm = here["shm_gb"]
    if shm is None:
        return
    if shm < LEAST_SHM_GB:
        yield Check(
            "shared memory",
            "fault",
            f"/dev/shm has {shm:.2f} GB, so Ray's objects lie on a disk and all is slow: start the container with "
            "--shm-size=8g",
        )
    elif shm < 0.3 * memory:
        text = f"/dev/shm has {shm:.1f} GB, less than the 30 % of memory that Ray takes; --shm-size enlarges it"
        yield Check("shared memory", "note", text)
    else:
        yield Check("shared memory", "ok", f"{shm:.1f} GB")


def _ports(address: str | None) -> Iterator[Check]:
    if address is not None:
        return
    for port, user in PORTS.items():
        used = taken(port)
        text = f"{port} is in use: a cluster runs here, or {user} needs another port" if used else f"{port} is free"
        yield Check("ports", "note" if used else "ok", text)


def _storage(here: Mapping[str, Any], probes: Mapping[str, str]) -> Iterator[Check]:
    for probe, location in probes.items():
        reason = here["unreachable"].get(probe)
        if reason:
            yield Check("storage", "fault", f"{location} was written but cannot be read: {reason}")
        else:
            yield Check("storage", "ok", f"{location} can be written, read and deleted")


def _features(config: Config | None) -> Iterator[Check]:
    if config is None or config.synthetic is not None:
        return
    from momkd_ray.cohort.feature_files import list_features

    found = len(list_features(config.features.dir))
    if found:
        yield Check("features", "ok", f"{config.features.dir} holds {found} feature files")
    else:
        text = f"features.dir {config.features.dir} holds no feature file: name the folder that does"
        yield Check("features", "fault", text)
    for table in (config.cohort.clinical, config.cohort.slides, config.cohort.omics):
        if table is not None and storage.kind(table) is None:
            yield Check("tables", "fault", f"{table} does not exist: correct its path in the configuration")


def _nodes(address: str, probes: Sequence[str]) -> list[dict[str, Any]]:
    """Describes every node of a cluster from a task that runs on it."""
    from momkd_ray.ray_runtime.cluster import connect

    with connect(address):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = [node for node in ray.nodes() if node["Alive"]]
        describe = ray.remote(num_cpus=0, max_retries=0)(describe_machine)
        tasks = [
            describe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                list(probes)
            )
            for node in alive
        ]
        nodes = []
        for node, task in zip(alive, tasks, strict=True):
            known = {"address": node["NodeManagerAddress"], "ray_gpus": node["Resources"].get("GPU", 0.0)}
            known["head"] = "node:__internal_head__" in node["Resources"]
            try:
                nodes.append({**ray.get(task, timeout=120), **known})
            except Exception as error:  # the package may be missing on that node
                lines = str(error).strip().splitlines() or [type(error).__name__]
                nodes.append({"error": lines[-1], **known})
        return nodes


def _cluster(
    here: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], probes: Mapping[str, str], config: Config | None
) -> Iterator[Check]:
    if not nodes:
        return
    yield Check("cluster", "ok", f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}")
    for node in nodes:
        name = f"{'head' if node['head'] else 'worker'} {node['address']}"
        if "error" in node:
            text = f"{name} cannot run this package: {node['error']}; install momkd-ray there too"
            yield Check("cluster", "fault", text)
            continue
        differing = {
            package: version for package, version in node["packages"].items() if version != here["packages"][package]
        }
        if node["python"].rpartition(".")[0] != here["python"].rpartition(".")[0]:
            differing["Python"] = node["python"]
        if differing:
            others = ", ".join(f"{package} {version}" for package, version in differing.items())
            yield Check("versions", "fault", f"{name} has {others}, unlike this machine: install the same everywhere")
        else:
            yield Check("versions", "ok", f"{name} has the versions of this machine")
        for probe, location in probes.items():
            if reason := node["unreachable"].get(probe):
                cure = "use a shared folder or s3://"
                yield Check("storage", "fault", f"{name} does not reach {location}: {reason}; {cure}")
        unused = max(node["gpus_present"], node["gpus_usable"]) - node["ray_gpus"]
        if unused > 0:
            text = f"{name}: {unused:g} GPUs are there that Ray does not offer; start its node with --num-gpus"
            yield Check("GPUs", "fault", text)
    if config is not None and config.cluster.gpus and not any(node["ray_gpus"] for node in nodes):
        yield Check("GPUs", "fault", "cluster.gpus_per_worker wants GPUs, and no node of the cluster offers any")
