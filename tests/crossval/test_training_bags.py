"""Who trains a model, and whose omics it learns from, for every share and in the refit as before it."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import changed, inputs_of

from momkd_ray.config.load import Config
from momkd_ray.crossval.early_checks import check_training_bags
from momkd_ray.crossval.training_bags import patients_to_learn_omics_of, training_bags
from momkd_ray.errors import InputError
from momkd_ray.ray_runtime.cluster import Connection
from momkd_ray.run.inputs import RunInputs


def trained(bags: pd.DataFrame) -> pd.DataFrame:
    return bags[bags["role"] == "train"]


@pytest.mark.parametrize("missing", ["keep", "drop"])
@pytest.mark.parametrize("refit", [False, True], ids=["first training", "refit"])
def test_a_share_of_the_labels_is_that_share_of_each_class_in_every_training(
    tiny_config: Config, ray_cluster: Connection, missing: str, refit: bool
) -> None:
    inputs = inputs_of(tiny_config)
    omics = inputs.cohort.omics
    assert omics is not None
    every_bag = inputs.fold_bags(0)
    candidates = every_bag[every_bag["role"].isin(["train", "val"] if refit else ["train"])]
    if missing == "drop":
        assert (~candidates["patient_id"].isin(omics.index)).any()
        candidates = candidates[candidates["patient_id"].isin(omics.index)]
    smaller: set[str] = set()
    for share in (0.01, 0.25, 0.5, 0.75, 1.0):
        config = changed(tiny_config, train__fraction=share, omics__missing=missing)
        bags = training_bags(inputs, config, 0, refit=refit)
        own = trained(bags)
        for y, of_class in candidates.groupby("y"):
            wanted = max(1, round(share * of_class["patient_id"].nunique()))
            assert own.loc[own["y"] == y, "patient_id"].nunique() == wanted
        assert set(own["patient_id"]) <= set(candidates["patient_id"])
        assert smaller <= set(own["patient_id"]), "a smaller share is part of a larger one"
        smaller = set(own["patient_id"])
        roles = ["test"] if refit else ["val", "test"]
        others = every_bag[every_bag["role"].isin(roles)].reset_index(drop=True)
        pd.testing.assert_frame_equal(bags[bags["role"] != "train"].reset_index(drop=True), others)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=40),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_a_share_of_the_omics_is_never_that_of_one_class_alone(
    seed: int, patients: list[tuple[int, bool]], shares: list[float]
) -> None:
    bags = pd.DataFrame({"patient_id": [f"P{i}" for i in range(len(patients))], "y": [y for y, _ in patients]})
    bags["role"] = "train"
    having = {f"P{i}": y for i, (y, has) in enumerate(patients) if has}
    smaller: set[str] = set()
    for share in sorted(shares):
        config = Config.model_validate(
            {"cohort": {"clinical": "c", "slides": "s", "label": "l", "omics": "o"}, "features": {"dir": "f"}}
        ).with_settings({"omics.fraction": share, "train.seed": seed})
        drawn = patients_to_learn_omics_of(bags, having, config, 0)
        assert len(drawn) == len(set(drawn)) and set(drawn) <= set(having)
        assert {having[patient] for patient in drawn} == (set(having.values()) if share else set())
        assert len(drawn) >= round(share * len(having)) and (share < 1 or set(drawn) == set(having))
        assert smaller <= set(drawn), "a smaller share is part of a larger one"
        smaller = set(drawn)


def test_a_share_that_leaves_a_class_without_omics_is_refused_before_training(
    tiny_config: Config, ray_cluster: Connection
) -> None:
    inputs = inputs_of(tiny_config)
    omics = inputs.cohort.omics
    assert omics is not None
    tenth = {"train.fraction": 0.1}
    refused = [seed for seed in range(40) if _is_refused(inputs, {**tenth, "train.seed": seed})]
    assert 0 < len(refused) < 40
    seed = {"train.seed": refused[0]}
    with pytest.raises(InputError, match=r"fraction 0.1 and train.seed \d+, fold \d trains on no patient of class"):
        check_training_bags(inputs, [{**tenth, **seed}], inputs.plan.folds)
    check_training_bags(inputs, [{**tenth, **seed, "omics.fraction": 0}, seed], inputs.plan.folds)


def _is_refused(inputs: RunInputs, setting: dict[str, float]) -> bool:
    try:
        check_training_bags(inputs, [setting], inputs.plan.folds)
    except InputError:
        return True
    return False
