"""A bag too large to be encoded whole: in tiles it gives what it gives whole, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from momkd_ray.batches import tiles
from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.batches.tiles import cut_tiles, make_tile
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.model.kernels import attend
from momkd_ray.model.momkd import MoMKD

WIDTH, HIDDEN = 12, 16


def bag_of(patches: int, seed: int) -> Bag:
    rng = np.random.default_rng(seed)
    coords = np.stack(np.divmod(rng.permutation(patches), 20), 1).astype(np.int32)
    features = rng.standard_normal((patches, WIDTH), dtype=np.float32)
    return Bag(f"slide-{seed}", features, coords, *knn_graph(coords, 8), {})


def batch_of(sizes: list[int]) -> BagBatch:
    bags = [bag_of(patches, seed) for seed, patches in enumerate(sizes)]
    return collate(bags, [i % 2 for i in range(len(bags))], seeds=list(range(len(bags))))


def cut(monkeypatch: pytest.MonkeyPatch, whole: int, tile: int) -> None:
    monkeypatch.setitem(tiles.MAX_UNTILED_PATCHES, "cpu", whole)
    monkeypatch.setitem(tiles.TILE_PATCHES, "cpu", tile)


def model_of() -> MoMKD:
    torch.manual_seed(0)
    sizes = {"hidden": HIDDEN, "shared": 8, "omics_hidden": 10, "omics_embedding": 10, "classifier_hidden": 8}
    return MoMKD(ModelConfig(**sizes), MemoryConfig(components=4), LossConfig(), width=WIDTH, genes=0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=40), st.integers(1, 12))
def test_every_patch_is_in_one_tile_with_all_that_reaches_it(edges: list[tuple[int, int]], size: int) -> None:
    ordered = np.array(sorted(edges), np.int32).reshape(-1, 2)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(ordered[:, 0], minlength=12))])
    graph = MessageGraph.from_csr(indptr, ordered[:, 1])
    sources_M, targets_M = graph.edge_index_2M.numpy()
    made = list(cut_tiles(graph, (12,), size))
    assert sorted(torch.cat([tile.own_Q for tile in made]).tolist()) == list(range(12))
    for tile in made:
        own, outer = tile.own_Q.numpy(), tile.outer_S.numpy()
        inner = outer[tile.inner_R.numpy()]
        assert len(own) <= size
        np.testing.assert_array_equal(inner[tile.own_in_inner_Q.numpy()], own)
        np.testing.assert_array_equal(inner, np.unique(sources_M[np.isin(targets_M, own)]))
        np.testing.assert_array_equal(outer, np.unique(sources_M[np.isin(targets_M, inner)]))
        for part, places, senders, receivers in (
            (tile.graph1, tile.messages1_M.numpy(), outer, inner),
            (tile.graph2, tile.messages2_M.numpy(), inner, own),
        ):
            part_sources_M, part_targets_M = part.edge_index_2M.numpy()
            np.testing.assert_array_equal(places, np.isin(targets_M, receivers).nonzero()[0])
            np.testing.assert_array_equal(senders[part_sources_M], sources_M[places])
            np.testing.assert_array_equal(receivers[part_targets_M], targets_M[places])


def test_what_a_part_of_a_graph_receives_has_a_way_back() -> None:
    graph = batch_of([30]).graph
    part, senders, _ = graph.incoming_subgraph(np.array([3, 4, 20]))
    sent, received = torch.randn(len(senders), 10).double(), torch.randn(3, 10).double()
    inputs = [x.requires_grad_() for x in (sent, received, torch.randn(2, 5).double(), torch.randn(10).double())]
    assert torch.autograd.gradcheck(lambda *x: attend(*x, part, None), inputs)


@pytest.mark.parametrize("sizes", [[230], [230, 7, 90]])
@pytest.mark.parametrize("tile", [1000, 64])
def test_a_bag_in_tiles_trains_and_predicts_as_whole(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], tile: int
) -> None:
    model = model_of()

    def results() -> dict[str, torch.Tensor]:
        batch = batch_of(sizes)
        assert bool(batch.tiles) == (tiles.MAX_UNTILED_PATCHES["cpu"] < sum(sizes))
        model.train().zero_grad()
        output = model(batch)
        terms = model.losses(output, batch)
        terms["total"].sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        p, attention = model.eval().predict(batch)
        return {**terms, **gradients, "slide": output.slide_BS, "patches": output.patches_PS, "p": p, "a": attention}

    whole = results()
    cut(monkeypatch, 40, tile)
    for name, value in results().items():
        torch.testing.assert_close(value, whole[name], atol=2e-6, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("training", [True, False])
def test_no_more_than_a_tile_is_held(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    """Every tensor that a pass over tiles keeps or makes is a tile's, but for a few numbers a patch."""
    patches = 2_000
    cut(monkeypatch, 40, 100)
    batch, model = batch_of([patches]), model_of()
    made: list[int] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            tensors = [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]
            wide = [x for x in tensors if x.dim() == 2 and x.shape[1] >= WIDTH]
            made.extend(len(x) for x in wide if x.data_ptr() != batch.features_PD.data_ptr())
            return out

    with Watched():
        if training:
            model.losses(model.train()(batch), batch)["total"].sum().backward()
        else:
            model.eval().predict(batch)
    assert max(made) == max(len(tile.outer_S) for tile in batch.tiles) < patches / 4


@pytest.mark.parametrize("whole", [1000, 10])
@pytest.mark.parametrize("way_back", [True, False])
def test_bfloat16_changes_rounding_alone(monkeypatch: pytest.MonkeyPatch, whole: int, way_back: bool) -> None:
    cut(monkeypatch, whole, 50)
    batch, model, outs = batch_of([130, 60]), model_of().eval(), []
    assert bool(batch.tiles) == (whole == 10)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.set_grad_enabled(way_back):
            outs.append(model(batch.to(torch.device("cpu"), dtype)))
    exact, half = ((out.patches_PS, out.logits_BY, out.attention_P) for out in outs)
    assert not torch.equal(half[0], exact[0])
    for theirs, mine in zip(exact, half, strict=True):
        torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0.02)
    if way_back:
        outs[1].logits_BY.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.slide_encoder.parameters() if p.grad is not None)
        assert model.slide_encoder.gat1.lin_l.weight.grad is not None


def test_some_patches_are_projected_as_in_the_whole() -> None:
    batch, model = batch_of([130]), model_of().eval()
    with torch.no_grad():
        wanted = model(batch).patches_PS
    chosen = np.array([3, 4, 77, 129])
    torch.testing.assert_close(model.project(batch.features_PD, make_tile(batch.graph, 0, chosen)), wanted[chosen])
