"""The networks that `model.name` may choose, and where each is defined; holds strings only, imports no PyTorch."""

from __future__ import annotations

MODELS = {
    "momkd": "momkd_ray.model.momkd:MoMKD",
    "mean_pool": "momkd_ray.model.baselines.pooling:MeanPool",
    "max_pool": "momkd_ray.model.baselines.pooling:MaxPool",
    "abmil": "momkd_ray.model.baselines.abmil:ABMIL",
    "gated_abmil": "momkd_ray.model.baselines.abmil:GatedABMIL",
    "clam_sb": "momkd_ray.model.baselines.clam:CLAMSB",
    "dsmil": "momkd_ray.model.baselines.dsmil:DSMIL",
    "transmil": "momkd_ray.model.baselines.transmil:TransMIL",
    "dtfd_mil": "momkd_ray.model.baselines.dtfd:DTFDMIL",
    "wikg": "momkd_ray.model.baselines.wikg:WiKG",
    "acmil": "momkd_ray.model.baselines.acmil:ACMIL",
    "soft_labels": "momkd_ray.model.baselines.soft_labels:SoftLabels",
    "batch_alignment": "momkd_ray.model.baselines.batch_alignment:BatchAlignment",
    "omics_only": "momkd_ray.model.baselines.omics_only:OmicsOnly",
    "late_fusion": "momkd_ray.model.baselines.late_fusion:LateFusion",
}
"""Name -> `module:class` of a `MILModel`."""

DEFAULT_MODEL = "momkd"

OMICS_MODELS = ("soft_labels", "batch_alignment", "omics_only", "late_fusion")
"""Those that cannot be trained without omics."""

ONE_WORKER_MODELS = ("batch_alignment",)
"""Those whose loss of a bag depends on the other bags of its step, which must therefore be on one worker."""

COMPONENT_MOMKD = "momkd_ray.model.component_momkd:ComponentMoMKD"
"""The class of `momkd` where `model.pooling` is `components`."""


def pools_components(name: str, pooling: str) -> bool:
    """Returns whether a model is `COMPONENT_MOMKD`.

    Its classifier is a ridge regression fitted to every training bag once. The trained part beside it has a tenth of
    the weight, so that its probabilities are at the classes' shares in training, however bags are drawn.
    """
    return name == DEFAULT_MODEL and pooling == "components"
