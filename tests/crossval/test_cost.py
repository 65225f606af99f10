"""What training a fold took: all that its model was made with counts, also genes, start and refit."""

from __future__ import annotations

import json
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_ray import storage
from momkd_ray.config.sections import ClusterConfig
from momkd_ray.crossval.cost import write_cost
from momkd_ray.run.layout import FoldDirectory

SECONDS = st.floats(0, 1000)
EPOCHS = st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=5)
Epochs = list[tuple[float, float, float]]


def write_epochs(directory: FoldDirectory, epochs: Epochs) -> None:
    names = ("seconds_start", "seconds_train", "seconds_validate")
    lines = [json.dumps(dict(zip(names, epoch, strict=True))) + "\n" for epoch in epochs]
    storage.write_text(directory.metrics, "".join(lines))


@given(epochs=EPOCHS, refit=st.none() | EPOCHS, preparation_s=SECONDS)
def test_all_but_validation_is_training(epochs: Epochs, refit: Epochs | None, preparation_s: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = FoldDirectory(folder)
        write_epochs(directory, epochs)
        if refit is not None:
            write_epochs(directory.refit, refit)
        write_cost(
            directory,
            ClusterConfig(),
            preparation_s=preparation_s,
            refitted=refit is not None,
            bags_validated=10,
            parameters=5,
        )
        cost = storage.read_json(directory.cost)
    expected = preparation_s + sum(start + steps for start, steps, _ in [*epochs, *(refit or [])])
    assert cost["training_seconds"] == pytest.approx(expected, abs=1e-3)
    validating = sum(validate for _, _, validate in epochs)
    assert cost["prediction_seconds_per_bag"] == pytest.approx(validating / (10 * len(epochs)))
