"""The configuration's section of the generated cohort."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from momkd_ray.config.dotted_keys import Section
from momkd_ray.config.values import Location, Positive, Seed


class SyntheticConfig(Section):
    """The demo's cohort, generated before the run if `dir` does not hold it yet."""

    dir: Location = Field(description="The folder of the generated cohort.")
    patients: Positive = Field(default=80, description="The number of patients. The default is the demo's.")
    patches: Positive = Field(
        default=300, description="The mean number of patches of a slide. The default is the demo's."
    )
    width: Positive = Field(default=256, description="The width of the features. The default is the demo's.")
    genes: Positive = Field(default=200, description="The number of genes. The default is the demo's.")
    classes: Annotated[int, Field(ge=2, le=9)] = Field(
        default=2,
        description="The number of classes: two, `negative` and `positive`, or more, named `grade 1`, `grade 2` and so "
        "on in the order of the latent variable.",
    )
    score: bool = Field(
        default=False, description="Whether the clinical table also has the number `SCORE`, 0 to 100, to predict."
    )
    seed: Seed = Field(default=7, description="The seed of the cohort. The default is the demo's.")
