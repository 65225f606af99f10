"""The kernels against PyTorch Geometric, their gradients, their bits, and dropout's masks."""

from __future__ import annotations

import shutil
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import GATv2Conv

from momkd_ray.batches.collate import collate
from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.model import kernels
from momkd_ray.model.dropout import Dropout, Layers, draw_dropout, dropout_pieces
from momkd_ray.model.gatv2 import CHUNK_PATCHES, GATv2
from momkd_ray.model.kernels import attend, cpu, reference, residual_block
from momkd_ray.model.kernels.linear import Linear
from momkd_ray.model.momkd import MoMKD

CPU = torch.device("cpu")
HEADS, WIDTH = 2, 5


def graph_of(patches: int, edges: list[tuple[int, int]]) -> MessageGraph:
    ordered = np.array(sorted(edges), np.int32).reshape(-1, 2)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(ordered[:, 0], minlength=patches))]).astype(np.int32)
    return MessageGraph.from_csr(indptr, ordered[:, 1])


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """Isolated patches, duplicates and self-loops are all among them."""
    patches = draw(st.integers(1, 9))
    patch = st.integers(0, patches - 1)
    return patches, draw(st.lists(st.tuples(patch, patch), max_size=25))


def inputs_of(patches: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(patches, HEADS * WIDTH), (patches, HEADS * WIDTH), (HEADS, WIDTH), (HEADS * WIDTH,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def drawn(seeds: list[int], layers: Layers) -> dict[str, Dropout]:
    return draw_dropout(dropout_pieces(seeds, layers), layers)


def dropout_on(rows: int, p: float = 0.4, seed: int = 3) -> Dropout:
    return drawn([seed], {"layer": ([rows], p)})["layer"]


def gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weights = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    return torch.autograd.grad(out, inputs, weights, retain_graph=True)


def through(backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_backend", lambda x: backend)


@settings(deadline=None, max_examples=60)
@given(graphs(), st.booleans())
def test_attention_is_that_of_pytorch_geometric(made: tuple[int, list[tuple[int, int]]], backwards: bool) -> None:
    patches, edges = made
    conv = GATv2Conv(WIDTH * HEADS, WIDTH, heads=HEADS)
    x = torch.randn(patches, WIDTH * HEADS, requires_grad=True)
    edge_index = torch.tensor(edges[:: -1 if backwards else 1], dtype=torch.int64).reshape(-1, 2).T
    theirs = conv(x, edge_index)
    graph = graph_of(patches, edges)
    parameters = [x, *conv.parameters()]
    for backend in (cpu, reference):
        with pytest.MonkeyPatch.context() as monkeypatch:
            through(backend, monkeypatch)
            ours = attend(conv.lin_l(x), conv.lin_r(x), conv.att[0], conv.bias, graph, None)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for our, their in zip(gradients(ours, parameters), gradients(theirs, parameters), strict=True):
            torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(graphs())
def test_backends_agree_under_dropout(made: tuple[int, list[tuple[int, int]]]) -> None:
    graph = graph_of(*made)
    attention, patches = dropout_on(len(graph.source_M)), dropout_on(made[0], seed=4)
    weight, bias = torch.randn(2, HEADS * WIDTH).requires_grad_().unbind()
    results = []
    for backend in (cpu, reference):
        inputs = inputs_of(made[0])
        with pytest.MonkeyPatch.context() as monkeypatch:
            through(backend, monkeypatch)
            attended = attend(*inputs, graph, attention)
            h1 = residual_block(attended, inputs[0], weight, bias, 1.0, patches)
            out = residual_block(h1, h1, weight, bias, 0.0, patches)
        results.append((out, *gradients(out, [*inputs, weight, bias])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradients_are_those_of_finite_differences(p: float) -> None:
    edges = [(0, 1), (0, 1), (2, 2), (3, 1), (1, 0), (4, 0), (1, 4)]
    graph = graph_of(6, edges)
    inputs = inputs_of(6, dtype=torch.float64)
    dropout = dropout_on(len(graph.source_M), p) if p else None
    assert torch.autograd.gradcheck(lambda *x: attend(*x, graph, dropout), inputs)
    block = [*inputs[:2], *torch.randn(2, HEADS * WIDTH, dtype=torch.float64).requires_grad_().unbind()]
    rows = dropout_on(6, p) if p else None
    for alpha in (1.0, 0.0):
        assert torch.autograd.gradcheck(lambda *x, alpha=alpha: residual_block(*x, alpha, rows), block)


def test_a_layer_starts_as_pytorch_geometrics() -> None:
    ours, theirs = GATv2(300, 200, 2), GATv2Conv(300, 100, heads=2)
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    for name, value in ours.named_parameters():
        their = theirs.get_parameter(name)
        assert value.std().item() == pytest.approx(their.std().item(), rel=0.25, abs=1e-9), name
        assert value.abs().max().item() == pytest.approx(their.abs().max().item(), rel=0.1, abs=1e-9), name


def test_a_part_of_a_graph_receives_what_it_does_in_the_whole() -> None:
    graph = graph_of(7, [(0, 1), (6, 3), (3, 6), (2, 4), (2, 4), (5, 3)])
    sent, received, weight, bias = inputs_of(7)
    whole = attend(sent, received, weight, bias, graph, None)
    for backend in (cpu, reference):
        with pytest.MonkeyPatch.context() as monkeypatch:
            through(backend, monkeypatch)
            for begin, end in ((0, 3), (3, 7)):
                part = attend(sent, received[begin:end], weight, bias, graph.receiving(begin, end), None)
                torch.testing.assert_close(part, whole[begin:end], atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="no backward pass"):
        attend(sent, received[:3], weight, bias, graph.receiving(0, 3), None).sum().backward()


def test_a_bag_in_parts_predicts_what_it_does_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes = ModelConfig(hidden=16, shared=8, omics_hidden=10, omics_embedding=10, classifier_hidden=8)
    model = MoMKD(sizes, MemoryConfig(components=4), LossConfig(), width=12, genes=0).eval()
    rng = np.random.default_rng(0)
    coords = np.stack(np.divmod(np.arange(50), 7), 1).astype(np.int32)
    bag = Bag("s", rng.standard_normal((50, 12), dtype=np.float32), coords, *knn_graph(coords, 8), {})
    whole = model(collate([bag]))
    monkeypatch.setitem(CHUNK_PATCHES, "cpu", 16)
    p, attention = model.predict(collate([bag]))
    torch.testing.assert_close(p, whole.logits_BY.softmax(-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention, whole.attention_P, atol=1e-6, rtol=1e-5)


def test_bits_do_not_depend_on_threads_or_on_the_run() -> None:
    patches = 3 * cpu.BLOCK + 7
    rng = np.random.default_rng(0)
    graph = graph_of(patches, [tuple(edge) for edge in rng.integers(0, patches, (8 * patches, 2)).tolist()])
    dropout = dropout_on(len(graph.source_M))
    results: list[Any] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 1, 2, 5):
            torch.set_num_threads(threads)
            inputs = inputs_of(patches)
            out = attend(*inputs, graph, dropout)
            block = residual_block(out, out, inputs[3], inputs[3], 1.0, None)
            results.append((out, block, *torch.autograd.grad(block.square().sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_bits_do_not_depend_on_where_in_memory_the_arrays_lie() -> None:
    patches, heads, width = 29, 2, 8
    rng = np.random.default_rng(0)
    graph = graph_of(patches, [tuple(edge) for edge in rng.integers(0, patches, (8 * patches, 2)).tolist()])
    shapes = [(patches, heads * width), (patches, heads * width), (heads, width), (heads * width,)]
    results: list[Any] = []
    between: list[torch.Tensor] = []
    for _ in range(3000):  # many small arrays, some of them side by side
        generator = torch.Generator().manual_seed(0)
        inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        out = residual_block(attend(*inputs, graph, None), inputs[0], inputs[3], inputs[3], 1.0, None)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), inputs)))
        between = [*between[-40:], torch.empty(int(rng.integers(1, 3000)))]
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_masks_are_the_same_for_any_batching() -> None:
    rows = {11: 3, 12: 1, 13: 700, 14: 20}
    none = dict.fromkeys(rows, 0)
    layers = {"omics": (list(none.values()), 0.25), "gat1": (list(rows.values()), 0.5), "off": ([9] * 4, 0.0)}
    together = drawn(list(rows), layers)
    apart = [drawn([seed], {"gat1": ([n], 0.5)})["gat1"] for seed, n in rows.items()]
    assert torch.equal(together["gat1"].keep(64), torch.cat([dropout.keep(64) for dropout in apart]))
    assert len(together["omics"].keys_N) == 0
    assert "off" not in together
    assert drawn(list(rows), {"off": layers["off"]}) == {}


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_masks_drop_at_their_rate_without_a_pattern(p: float) -> None:
    keep = dropout_on(2000, p).keep(512)
    assert set(keep.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    kept = (keep > 0).double() - (1 - p)
    deviation = (p * (1 - p)) ** 0.5
    assert abs(kept.mean()) < 5 * deviation / kept.numel() ** 0.5
    assert kept.mean(0).abs().max() < 5 * deviation / 2000**0.5
    assert kept.mean(1).abs().max() < 5 * deviation / 512**0.5
    for shifted in (kept.roll(1, 0), kept.roll(1, 1), kept.roll((1, 1), (0, 1)), kept.roll((1, -1), (0, 1))):
        assert abs((kept * shifted).mean()) < 5 * deviation**2 / kept.numel() ** 0.5


def test_masks_differ_by_seed_and_by_layer() -> None:
    layers = dict.fromkeys(("gat1", "gat2"), ([1000], 0.5))
    masks = [mask for seed in (1, 2, 2**62) for mask in drawn([seed], layers).values()]
    kept = [mask.keep(100) > 0 for mask in masks]
    assert len(kept) == 6
    for i, one in enumerate(kept):
        for other in kept[:i]:
            assert abs((one == other).double().mean() - 0.5) < 0.01


def test_a_kernel_finds_the_same_mask_as_pytorch() -> None:
    dropout = dropout_on(50)
    ones = torch.ones(50, 32)
    rising = torch.arange(32.0).expand(50, 32)
    dropped = residual_block(rising, 0 * ones, ones[0], 100 * ones[0], 1.0, dropout)
    assert torch.equal(dropped == 0, dropout.keep(32) == 0)


def test_what_is_not_float32_is_computed_in_it() -> None:
    graph = graph_of(3, [(0, 1), (1, 2)])
    inputs = [x.detach() for x in inputs_of(3)]
    halved = [x.bfloat16() for x in inputs]
    ours = attend(*halved, graph, None)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, attend(*(x.float() for x in halved), graph, None))
    assert torch.equal(attend(inputs[0].T.contiguous().T, *inputs[1:], graph, None), attend(*inputs, graph, None))


@pytest.mark.parametrize("missing", ["Triton", "a C compiler"])
def test_a_gpu_without_triton_or_its_compiler_has_pytorch_and_says_so(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None if missing == "Triton" else name)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    kernels.triton_works.cache_clear()
    with pytest.warns(RuntimeWarning, match=f"without {missing} "):
        assert kernels._backend(SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)) is reference
    kernels.triton_works.cache_clear()


def test_a_rate_of_almost_1_drops_all() -> None:
    dropout = dropout_on(50, 1 - 1e-12)
    out = residual_block(torch.randn(50, 32), torch.zeros(50, 32), torch.ones(32), torch.ones(32), 1.0, dropout)
    assert not out.any() and not dropout.keep(32).any()


def test_a_graph_is_checked_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="names patch 3"):
        MessageGraph.from_csr(np.array([0, 1, 1, 1]), np.array([3]))
    with pytest.raises(ValueError, match=r"names patch .* -1"):
        MessageGraph.from_csr(np.array([0, 1, 1, 1]), np.array([-1]))
    with pytest.raises(ValueError, match="do not cover"):
        MessageGraph.from_csr(np.array([0, 1, 1, 1]), np.array([0, 1]))


def test_sizes_types_and_devices_that_do_not_go_together_are_refused() -> None:
    graph, inputs = graph_of(3, [(0, 1)]), inputs_of(3)
    with pytest.raises(ValueError, match=r"received has shape \(2, 10\), but must have \(3, 10\)"):
        attend(inputs[0], inputs[1][:2], *inputs[2:], graph, None)
    with pytest.raises(ValueError, match="keys"):
        attend(*inputs, graph, dropout_on(3))
    with pytest.raises(ValueError, match="not a floating-point type"):
        attend(inputs[0].long(), *inputs[1:], graph, None)
    with pytest.raises(ValueError, match="cpu and meta"):
        attend(inputs[0].to("meta"), *inputs[1:], graph, None)
    with pytest.raises(ValueError, match="residual"):
        residual_block(inputs[0], inputs[1][:2], inputs[3], inputs[3], 1.0, None)


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("to_x", [True, False])
def test_a_linear_layer_is_pytorchs_with_its_gradients(rows: int, to_x: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    ours, theirs = Linear(24, 40), torch.nn.Linear(24, 40)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(rows, 48, generator=generator)[:, ::2].requires_grad_(to_x)
    inputs = [x] if to_x else []
    outs = [(layer(x), [*inputs, *layer.parameters()]) for layer in (ours, theirs)]
    torch.testing.assert_close(outs[0][0], outs[1][0])
    for mine, wanted in zip(*(gradients(*out) for out in outs), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


def test_a_linear_layer_multiplies_bfloat16_and_sums_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, exact = Linear(64, 40), torch.nn.Linear(64, 40)
    exact.load_state_dict({name: value.bfloat16().float() for name, value in ours.state_dict().items()})
    with torch.no_grad():
        exact.bias.copy_(ours.bias)
    half = torch.randn(300, 64, generator=generator).bfloat16().requires_grad_()
    whole = half.detach().float().requires_grad_()
    out, expected = ours(half), exact(whole)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=0.02, rtol=0.01)
    mine, theirs = gradients(out, [half, *ours.parameters()]), gradients(expected, [whole, *exact.parameters()])
    assert [g.dtype for g in mine] == [torch.bfloat16, torch.float32, torch.float32]
    for grad, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(grad.float(), wanted, atol=0.02 * float(wanted.abs().max()), rtol=0.02)
    torch.testing.assert_close(mine[2], theirs[2])
