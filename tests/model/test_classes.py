"""More than two classes: every model learns them, the binary losses are a special case, and bundles keep names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.fold_tasks import fold_task
from support.models import card_of
from support.peers import PEERS, batch_of, peer, summary_of

from momkd_ray.model import losses
from momkd_ray.model.bundle import load_bundle, save_bundle
from momkd_ray.model.explain import explain
from momkd_ray.model.ridge import fit_classes_ridge, fit_ridge
from momkd_ray.train.worker import train_loop_per_worker

SIZES = (9, 1, 30, 4, 17, 2, 12, 5, 8)


@pytest.mark.parametrize("name", [*PEERS, "momkd"])
def test_it_overfits_three_classes(name: str) -> None:
    torch.manual_seed(0)
    batch, model = batch_of(SIZES, classes=3), peer(name, classes=3)
    model.prepare(summary_of(batch))
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    with_omics = np.array(batch.omics_per_bag, bool) if name == "omics_only" else np.ones(len(SIZES), bool)
    right_B = np.zeros(len(SIZES), bool)
    for _ in range(10):
        model.train()
        for _ in range(10):
            optimiser.zero_grad()
            model.losses(model(batch), batch)["total"].mean().backward()
            optimiser.step()
        p_BY, attention_P = model.eval().predict(batch)
        assert p_BY.shape == (len(SIZES), 3)
        np.testing.assert_allclose(p_BY.sum(1).numpy(), 1, rtol=1e-5)
        right_B = p_BY.argmax(1).numpy() == batch.labels_B.numpy()  # type: ignore[union-attr]
        if right_B[with_omics].mean() > 0.7:
            break
    assert right_B[with_omics].mean() > 0.7
    if attention_P is not None:
        one = batch_of(SIZES[2:3], first_seed=2, classes=3)
        readout = model.readout(one)
        assert readout is not None
        explained = explain(readout)
        np.testing.assert_allclose(explained.logits_Y, model(one).logits_BY[0].detach().numpy(), atol=1e-4)
        assert explained.contribution_PY.shape == (30, 3)


@pytest.mark.parametrize("pooling", ["components", "attention"])
def test_momkd_trains_on_three_classes(pooling: str, tmp_path: Path) -> None:
    task = fold_task(tmp_path / "fold", classes=3, pooling=pooling, patience=3)
    uneven = {patient: (0.2, 0.3, 0.5) for patient in list(task.omics)[:3]}
    task.targets.update(uneven)
    result = train_loop_per_worker({"task": task})
    assert result is not None and 0 <= result["best"] <= 1
    slides = task.directory.slides("test")
    table = pd.read_parquet(slides)
    assert list(table.columns) == ["slide_id", "patient_id", "label", "p_grade 0", "p_grade 1", "p_grade 2"]
    np.testing.assert_allclose(table.iloc[:, 3:].sum(axis=1), 1, rtol=1e-5)


def test_a_bundle_of_three_classes_is_read_back(tmp_path: Path) -> None:
    model = peer("momkd", classes=3, pooling="components").eval()
    card = card_of(model).model_copy(update={"classes": ("low", "middle", "high"), "threshold": None})
    save_bundle(str(tmp_path / "model"), model, card)
    loaded, read = load_bundle(str(tmp_path / "model"))
    assert read.classes == ("low", "middle", "high") and read.threshold is None
    batch = batch_of(SIZES, classes=3)
    assert torch.equal(loaded.predict(batch)[0], model.predict(batch)[0])


def test_the_losses_of_two_classes_are_the_binary_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    affinity_N2 = torch.randn(40, 2, generator=generator)
    target_N = torch.rand(40, generator=generator)
    both_N2 = torch.stack([1 - target_N, target_N], dim=1)
    delta_N = affinity_N2[:, 1] - affinity_N2[:, 0]
    torch.testing.assert_close(
        losses.soft_angle_of_targets(affinity_N2, both_N2, 20.0, 0.3),
        losses.soft_angle_of_target(delta_N, target_N, 20.0, 0.3),
    )
    torch.testing.assert_close(losses.certainty(both_N2), (2 * target_N - 1).abs())
    torch.testing.assert_close(
        losses.cross_entropy_of_targets(affinity_N2, both_N2), losses.cross_entropy_of_target(affinity_N2, target_N)
    )
    assert torch.equal(losses.lead(affinity_N2)[:, 1], delta_N)


def test_the_ridge_of_two_classes_is_the_binary_one() -> None:
    rng = np.random.default_rng(0)
    x_NF = rng.normal(size=(60, 20))
    y_N = (x_NF[:, 0] + rng.normal(size=60) > 0).astype(float)
    binary, several = fit_ridge(x_NF, y_N), fit_classes_ridge(x_NF, np.stack([1 - y_N, y_N], axis=1))
    assert several.penalty == binary.penalty
    np.testing.assert_allclose(several.weight_YF[1] - several.weight_YF[0], binary.weight_F, rtol=2e-2, atol=1e-3)
    assert several.bias_Y[1] - several.bias_Y[0] == pytest.approx(binary.bias, abs=2e-2)
