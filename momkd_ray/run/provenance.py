"""The identity of a run: the fingerprint of all that its result depends on, and the claim of its directory."""

from __future__ import annotations

import hashlib
import platform

from momkd_ray import __version__, storage
from momkd_ray.bags.store import BagStore
from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.folds import FoldPlan
from momkd_ray.cohort.table_files import read_content
from momkd_ray.config.load import Config
from momkd_ray.config.sections import GENE_SELECTIONS, resolve_location
from momkd_ray.errors import InputError
from momkd_ray.input_faults import record_faults
from momkd_ray.run.inputs import RunInputs


def fingerprint(config: Config, cohort: Cohort, plan: FoldPlan, store: BagStore) -> str:
    """Returns 16 hex digits of a SHA-256 over the configuration, cohort, folds, features and the package's version."""
    digest = hashlib.sha256(__version__.encode())
    digest.update(config.answer_fingerprint().encode() + cohort.fingerprint().encode())
    selections = config.search.get("genes.select", [])
    for select in [config.genes.select, *(selections if isinstance(selections, list) else [])]:
        if select not in GENE_SELECTIONS:
            digest.update(read_content(resolve_location(str(select))))
    digest.update(plan.table.sort_index().to_csv().encode())
    slide_ids = sorted(cohort.slides["slide_id"])
    digest.update("".join(f"{s}:{sha}" for s, sha in store.slides["sha256"].loc[slide_ids].items()).encode())
    return digest.hexdigest()[:16]


def claim_directory(inputs: RunInputs) -> None:
    """Writes configuration, folds, exclusions and provenance into the run directory.

    Raises:
        InputError: the directory contains a run with another fingerprint.
    """
    directory = inputs.directory
    if storage.exists(directory.provenance):
        earlier = storage.read_json(directory.provenance)["fingerprint"]
        if earlier != inputs.fingerprint:
            raise InputError(
                f"{directory.location} holds a run of another configuration or other data (fingerprint {earlier}, now "
                f"{inputs.fingerprint}; compare its run.yaml): choose another run.dir, or remove that one"
            )
    inputs.plan.to_csv(directory.folds, inputs.cohort.patient_column)
    storage.write_text(directory.excluded, inputs.cohort.excluded.to_csv(index=False, lineterminator="\n"))
    record_faults((*inputs.cohort.rejected, *inputs.plan.rejected), "the inputs", directory.rejected, "skip")
    storage.write_text(directory.configuration, inputs.config.to_yaml())
    storage.write_json(directory.provenance, {"fingerprint": inputs.fingerprint, **versions()})


def versions() -> dict[str, str]:
    """Returns the versions of the software that a result may depend on."""
    import ray
    import torch
    import torch_geometric

    return {
        "momkd_ray": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        "ray": ray.__version__,
    }
