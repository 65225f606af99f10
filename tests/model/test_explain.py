"""What patches contribute: the readout gives the model's own logits, and contributions are those of leaving out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.bags import make_bag
from support.models import arrays_of, bag_of

from momkd_ray.batches import collate as collating
from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.config.model_names import MODELS
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.explain import Readout, explain
from momkd_ray.model.interface import MILModel
from momkd_ray.model.registry import build_model

WITHOUT_ATTENTION = ("mean_pool", "max_pool", "transmil", "omics_only")
WITH_ATTENTION = tuple(name for name in MODELS if name not in WITHOUT_ATTENTION)


def built(name: str) -> MILModel:
    torch.manual_seed(3)
    sizes = ModelConfig(name=name, hidden=16, heads=2, shared=8, omics_hidden=8, omics_embedding=8, classifier_hidden=8)
    return build_model(sizes, MemoryConfig(components=3), LossConfig(), width=6, genes=4).eval()


def one_bag(n: int = 40, seed: int = 1) -> BagBatch:
    return collate([make_bag(n, "float32", seed)])


def readout_of(model: MILModel, batch: BagBatch) -> Readout:
    with torch.no_grad():
        readout = model.readout(batch)
    assert readout is not None
    return readout


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_the_readout_gives_the_logits_and_the_attention_of_the_forward_pass(name: str) -> None:
    model, batch = built(name), one_bag()
    with torch.no_grad():
        output = model(batch)
    explained = explain(readout_of(model, batch))
    np.testing.assert_allclose(explained.logits_Y, output.logits_BY[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(explained.attention_P, output.attention_P.numpy(), atol=1e-6)
    assert explained.attention_P.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_models_without_attention_have_no_readout(name: str) -> None:
    assert built(name).readout(one_bag()) is None


@pytest.mark.parametrize("name", WITH_ATTENTION)
def test_a_contribution_is_what_the_logit_loses_without_the_patch(name: str) -> None:
    model, batch = built(name), one_bag(60)
    readout = readout_of(model, batch)
    contribution_PY = explain(readout).contribution_PY
    with torch.no_grad():
        whole_Y = readout.classify(readout.pooled_1H)[0]
        for p in range(len(contribution_PY)):
            others = readout.attention_P.clone()
            others[p] = 0
            pooled = (others / others.sum())[None] @ readout.patches_PH
            lost_Y = (whole_Y - readout.classify(pooled)[0]).numpy()
            np.testing.assert_allclose(contribution_PY[p], lost_Y, rtol=0.05, atol=2e-5)


def test_the_only_patch_of_a_bag_has_no_contribution() -> None:
    explained = explain(readout_of(built("momkd"), one_bag(1)))
    assert np.isnan(explained.contribution_PY).all()
    assert explained.attention_P.tolist() == [1.0]


def test_one_patch_with_all_attention_is_left_out_in_fact() -> None:
    patches_PH = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    attention_P = torch.tensor([1 - 2e-7, 1e-7, 1e-7])
    explained = explain(Readout(patches_PH, attention_P, lambda x_NH: x_NH))
    np.testing.assert_allclose(explained.contribution_PY[0], [5, -2], atol=1e-3)


def test_the_nearest_component_is_that_of_the_highest_cosine() -> None:
    model = built("momkd")
    readout = readout_of(model, one_bag())
    explained = explain(readout)
    assert readout.similarity_PYK is not None and explained.component_P is not None
    assert explained.components == 3
    for p, index in enumerate(explained.component_P.tolist()):
        y, k = divmod(index, 3)
        assert readout.similarity_PYK[p, y, k] == readout.similarity_PYK[p].max()
    assert (np.abs(explained.similarity_P) <= 1 + 1e-5).all()


def test_a_bag_in_tiles_is_explained_as_one_that_is_encoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, bag = built("momkd"), make_bag(200, "float32", 2)
    whole = explain(readout_of(model, collate([bag])))
    monkeypatch.setattr(collating, "MAX_UNTILED_PATCHES", {"cpu": 50})
    monkeypatch.setattr(collating, "TILE_PATCHES", {"cpu": 32})
    batch = collate([bag])
    assert len(batch.tiles) > 1
    tiled = explain(readout_of(model, batch))
    np.testing.assert_allclose(tiled.attention_P, whole.attention_P, atol=1e-6)
    np.testing.assert_allclose(tiled.contribution_PY, whole.contribution_PY, atol=1e-5)


def test_a_released_case_keeps_its_attention() -> None:
    from support.models import CASES, released_model

    case = arrays_of(CASES[0])
    batch = collate([bag_of(case["features"], case["coords"], case["edge_index"])])
    explained = explain(readout_of(released_model().eval(), batch))
    np.testing.assert_allclose(explained.attention_P, case["inference_attention"].reshape(-1), atol=1e-5)
