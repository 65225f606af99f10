"""The identity of a run: the fingerprint of all that its result depends on, and the claim of its directory."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version

import yaml
from pydantic import ValidationError

from momkd_ray import __version__, storage
from momkd_ray.bags.store import BagStore
from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.folds import FoldPlan
from momkd_ray.cohort.table_files import read_content
from momkd_ray.cohort.understood import in_order
from momkd_ray.config.load import Config
from momkd_ray.config.model_names import ONE_WORKER_MODELS, pools_components
from momkd_ray.config.sections import GENE_SELECTIONS, resolve_location
from momkd_ray.errors import InputError
from momkd_ray.input_faults import record_faults
from momkd_ray.run.earlier_run import differing_keys, discard_untrained, has_trained, in_short
from momkd_ray.run.inputs import RunInputs
from momkd_ray.run.layout import RunDirectory


def fingerprint(config: Config, cohort: Cohort, plan: FoldPlan, store: BagStore) -> str:
    """Returns 16 hex digits of a SHA-256 over the configuration, cohort, folds, features and the package's version."""
    return _fingerprint(config.answer_fingerprint(), config, cohort, plan, store)


def _fingerprint(answer: str, config: Config, cohort: Cohort, plan: FoldPlan, store: BagStore) -> str:
    digest = hashlib.sha256(__version__.encode())
    digest.update("".join(_computed_otherwise(config)).encode())
    digest.update(answer.encode() + cohort.fingerprint().encode())
    selections = config.search.get("genes.select", [])
    for select in [config.genes.select, *(selections if isinstance(selections, list) else [])]:
        if select not in GENE_SELECTIONS:
            digest.update(read_content(resolve_location(str(select))))
    digest.update(plan.table.sort_index().to_csv().encode())
    slide_ids = sorted(cohort.slides["slide_id"])
    digest.update("".join(f"{s}:{sha}" for s, sha in store.slides["sha256"].loc[slide_ids].items()).encode())
    return digest.hexdigest()[:16]


def _computed_otherwise(config: Config) -> list[str]:
    """Lists why a run computes other numbers than earlier states of this version did, which it must not go on from."""
    varied = set(config.search)
    shares = config.train.fraction < 1 or config.omics.missing == "drop" or varied & {"train.fraction", "omics.missing"}
    ridge_start = pools_components(config.model.name, config.model.pooling)
    balanced = config.train.balanced or "train.balanced" in varied
    reasons = {
        "the ridge start leaves out patients, with four degrees of freedom at least": ridge_start,
        "scores take the ridge start's classes as common as in training": ridge_start
        and balanced
        and config.cohort.task == "regression",
        "shares hold in the refit": shares and config.train.refit,
        "bags of a step share a pass": config.model.name in ONE_WORKER_MODELS,
    }
    return [reason for reason, holds in reasons.items() if holds]


def claim_directory(
    inputs: RunInputs, others_work: Callable[[], bool] = lambda: False, gpus_per_worker: float | None = None
) -> RunInputs:
    """Writes configuration, folds, exclusions and provenance into the run directory, unless it belongs to another run.

    A directory in which another run has trained nothing is taken over.

    Args:
        inputs: cohort, folds and bags.
        others_work: returns whether other processes work in the directory.
        gpus_per_worker: what `cluster.gpus_per_worker` has become on this cluster.

    Returns:
        The inputs, with the fingerprint under which the directory's run began.

    Raises:
        InputError: the directory contains a run of another configuration or other data.
    """
    directory, claimed = inputs.directory, inputs.fingerprint

    understood = [asdict(entry) for entry in in_order([*inputs.cohort.understood, *inputs.plan.understood])]

    def claim(content: bytes | None) -> bytes:
        nonlocal claimed
        earlier = _recorded_fingerprint(content, directory)
        claimed = inputs.fingerprint
        if earlier not in ("", inputs.fingerprint):
            recorded = _recorded_configuration(directory)
            if recorded is not None and _is_of(earlier, recorded, inputs):
                claimed = earlier
            elif others_work() or has_trained(directory):
                raise _other_run(directory, recorded, inputs, earlier)
            else:
                discard_untrained(directory)
        software = {**versions(), "system": platform.platform()}
        known = {"fingerprint": claimed, **software, "gpus_per_worker": gpus_per_worker, "understood": understood}
        return (json.dumps(known, indent=2) + "\n").encode()

    storage.update(directory.provenance, claim)
    inputs.plan.to_csv(directory.folds, inputs.cohort.patient_column)
    storage.write_text(directory.excluded, inputs.cohort.excluded.to_csv(index=False, lineterminator="\n"))
    record_faults(inputs.cohort.rejected, "the inputs", directory.rejected, "skip")
    if claimed == inputs.fingerprint:  # or else the recorded one is what the fingerprint was computed from
        storage.write_text(directory.configuration, inputs.config.to_yaml())
    return replace(inputs, fingerprint=claimed)


def is_of_a_trained_run(directory: RunDirectory) -> bool:
    """Returns whether a directory holds a run that has trained something."""
    return storage.exists(directory.provenance) and has_trained(directory)


def refuse_other_folds(directory: RunDirectory, plan: FoldPlan, patient_column: str) -> None:
    """Raises `InputError` if a run in the directory was trained on other folds."""
    if not storage.exists(directory.folds) or not is_of_a_trained_run(directory):
        return
    if storage.read_text(directory.folds) != plan.to_text(patient_column):
        raise InputError(
            f"{directory.location} holds a run that was trained on other folds: set run.dir to {directory.another()}, "
            "or remove that run"
        )


def _recorded_fingerprint(content: bytes | None, directory: RunDirectory) -> str:
    try:
        return "" if content is None else str(json.loads(content)["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{directory.provenance} is damaged, so it is not known which run {directory.location} holds: set run.dir "
            f"to {directory.another()}, or remove that run"
        ) from error


def _recorded_configuration(directory: RunDirectory) -> Config | None:
    """Returns the configuration of the run in a directory; None if it cannot be read, as one of another version."""
    try:
        return Config.model_validate(yaml.safe_load(storage.read_text(directory.configuration)))
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError, ValidationError):
        return None


def _is_of(earlier: str, recorded: Config, inputs: RunInputs) -> bool:
    """Returns whether a fingerprint is of these data and a configuration that can only give the same results."""
    if differing_keys(recorded, inputs.config):
        return False
    answer = recorded.answer_fingerprint()
    return _fingerprint(answer, inputs.config, inputs.cohort, inputs.plan, inputs.store) == earlier


def _other_run(directory: RunDirectory, recorded: Config | None, inputs: RunInputs, earlier: str) -> InputError:
    differences = [] if recorded is None else differing_keys(recorded, inputs.config)
    what = in_short(differences) if differences else "patients, omics, folds, features or the version of the software"
    return InputError(
        f"{directory.location} holds a run of another configuration or other data (fingerprint {earlier}, now "
        f"{inputs.fingerprint}): {what}; set run.dir to {directory.another()}, or remove that run"
    )


def versions() -> dict[str, str]:
    """Returns the versions of the software that a result may depend on."""
    import ray
    import torch

    return {
        "momkd_ray": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": version("torch_geometric"),  # importing it takes two seconds
        "ray": ray.__version__,
    }
