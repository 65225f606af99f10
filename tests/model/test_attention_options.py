"""Pooling by attention without the graph, and with attention of its own: right, alike in tiles, explained, exported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.bags import WIDTH, make_bag
from support.models import bag_of, small_model

from momkd_ray.batches import tiles
from momkd_ray.batches.collate import collate
from momkd_ray.config.sections import LossConfig, MemoryConfig
from momkd_ray.export.program import Program
from momkd_ray.model.explain import explain
from momkd_ray.model.momkd import MoMKD


def model_with(**options: object) -> MoMKD:
    torch.manual_seed(0)
    sizes = small_model().model_config.model_copy(update=options)
    return MoMKD(sizes, MemoryConfig(components=4), LossConfig(), width=WIDTH, genes=6)


OPTIONS = [{"graph": False}, {"attention": "learned"}, {"graph": False, "attention": "learned"}]


def test_a_network_without_a_graph_is_one_whose_patches_have_no_neighbours() -> None:
    plain, graphs = model_with(graph=False), model_with()
    graphs.load_state_dict(plain.state_dict(), strict=False)
    features = np.random.default_rng(0).standard_normal((9, WIDTH), dtype=np.float32)
    edges = np.array([(i, (i + 1) % 9) for i in range(9)]).T
    linked = bag_of(features, np.zeros((9, 2)), edges)
    alone = bag_of(features, np.zeros((9, 2)), np.zeros((2, 0), np.int64))
    for mode in (True, False):  # training computes all at once, prediction in chunks
        outputs = []
        for model, bag in ((plain, linked), (graphs, alone), (graphs, linked)):
            model.train(mode)
            with torch.set_grad_enabled(mode):
                outputs.append(model(collate([bag])).logits_BY)
        torch.testing.assert_close(outputs[0], outputs[1])
        assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize("options", OPTIONS)
def test_every_parameter_learns_and_tiles_change_nothing(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with(dropout=0.5, **options).train()
    bags = [make_bag(n, "float32", n) for n in (40, 7)]
    rows = [np.ones(6, np.float32), None]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        batch = collate(bags, [0, 1], rows, [5, 6])
        model.losses(model(batch), batch)["total"].sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    whole = gradients()
    monkeypatch.setitem(tiles.MAX_UNTILED_PATCHES, "cpu", 0)
    monkeypatch.setitem(tiles.TILE_PATCHES, "cpu", 16)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_explained_and_exported_as_it_predicts(options: dict[str, object]) -> None:
    model = model_with(**options).eval()
    bag = make_bag(20, "float32", 1)
    batch = collate([bag])
    p_BY, attention_P = model.predict(batch)
    with torch.no_grad():
        readout = model.readout(batch)
    assert readout is not None and attention_P is not None
    np.testing.assert_allclose(explain(readout).attention_P, attention_P.numpy(), atol=1e-6)
    program = Program([model])
    assert program.has_graph == model.model_config.graph
    edges = np.stack([np.repeat(np.arange(20), np.diff(bag.edge_indptr)), bag.edge_indices])
    with torch.no_grad():
        p_Y, exported_P = program(batch.features_PD, torch.from_numpy(edges.astype(np.int64)))
    torch.testing.assert_close(p_Y, p_BY[0])
    torch.testing.assert_close(exported_P, attention_P)
