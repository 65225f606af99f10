"""The GPU's kernels against the reference, on a GPU where there is one, else interpreted; and that they compile."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from support.models import arrays_of, assert_released_numbers

from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.model import kernels
from momkd_ray.model.dropout import Dropout, draw_dropout, dropout_pieces
from momkd_ray.model.kernels import cpu, reference

triton = pytest.importorskip("triton", reason="Triton comes with PyTorch for CUDA or with the extra `test`")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """The GPU backend, loaded anew: on a CPU with Triton's interpreter, which must be chosen before functions are
    decorated, those of our modules and of Triton's own the two that they use."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if DEVICE.type == "cpu":
            if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
                pytest.skip("Triton's interpreter before 3.7 needs a NumPy before 2.4")
            monkeypatch.setenv("TRITON_INTERPRET", "1")
            for name in ("sum", "max"):
                monkeypatch.setattr(triton.language, name, triton.jit(getattr(triton.language, name).fn))
        launch, _, _, backend = (load_anew(name, monkeypatch) for name in ("launch", "attention", "block", "gpu"))
        monkeypatch.setattr(launch, "PROGRAMS", 4)  # several rows per program also for a small graph
        yield backend


def load_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Execute a module of the backend once more; the next ones import this instance of it."""
    spec = importlib.util.find_spec(f"momkd_ray.model.kernels.triton_{name}")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def graph_between(senders: int, receivers: int, edges: list[tuple[int, int]]) -> MessageGraph:
    """Of messages (sender, receiver), and of no others."""
    source_M, target_M = np.array(sorted(edges, key=lambda edge: edge[::-1]), np.int64).reshape(-1, 2).T
    message_M = np.argsort(source_M, kind="stable")
    received_P1 = np.searchsorted(target_M, np.arange(receivers + 1))
    sent_P1 = np.searchsorted(source_M[message_M], np.arange(senders + 1))
    arrays = (received_P1, source_M, sent_P1, message_M, target_M[message_M])
    return MessageGraph(*(torch.from_numpy(array.astype(np.int32)) for array in arrays)).to(DEVICE)


@st.composite
def graphs(draw: st.DrawFn) -> MessageGraph:
    """Senders of nothing, receivers of nothing, duplicates, and more than one block of rows are all among them."""
    senders, receivers = draw(st.integers(1, 11)), draw(st.integers(1, 11))
    edge = st.tuples(st.integers(0, senders - 1), st.integers(0, receivers - 1))
    return graph_between(senders, receivers, draw(st.lists(edge, max_size=20)))


def inputs_of(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for shape in shapes]


def attended_by(graph: MessageGraph, heads: int, width: int) -> list[torch.Tensor]:
    rows = (len(graph.sent_P1) - 1, len(graph.received_P1) - 1)
    return inputs_of(*((n, heads * width) for n in rows), (heads, width), (heads * width,))


def dropout_on(rows: int, p: float = 0.4) -> Dropout | None:
    layers = {"layer": ([rows], p)}
    return draw_dropout(dropout_pieces([3], layers).to(DEVICE), layers).get("layer")


def through(backend: ModuleType, function: str, inputs: list[torch.Tensor], *rest: Any) -> list[torch.Tensor]:
    """What a backend makes of the inputs, and its gradients."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(kernels, "_backend", lambda x: backend)
        out = getattr(kernels, function)(*inputs, *rest)
    weights = torch.sin(torch.arange(out.numel(), dtype=out.dtype, device=DEVICE)).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


def assert_equal_up_to_rounding(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(graphs(), st.sampled_from([(2, 5), (1, 8), (3, 1)]), st.sampled_from([0.0, 0.4]))
def test_attention_is_that_of_the_reference(gpu: ModuleType, graph: MessageGraph, sizes: Any, p: float) -> None:
    rest = (graph, dropout_on(len(graph.source_M), p))
    results = [through(backend, "attend", attended_by(graph, *sizes), *rest) for backend in (gpu, reference)]
    assert_equal_up_to_rounding(*results)


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("width", [10, 16])
def test_a_residual_block_is_that_of_the_reference(gpu: ModuleType, width: int, alpha: float, p: float) -> None:
    shapes = ((11, width), (11, width), (width,), (width,))
    rest = (alpha, dropout_on(11, p))
    results = [through(backend, "residual_block", inputs_of(*shapes), *rest) for backend in (gpu, reference)]
    assert_equal_up_to_rounding(*results)


def test_a_part_of_a_graph_receives_what_it_does_in_the_whole(gpu: ModuleType) -> None:
    edges = [(0, 1), (6, 3), (3, 6), (2, 4), (2, 4), (5, 3), *((i, i) for i in range(7))]
    graph = graph_between(7, 7, edges)
    sent, received, weight, bias = (x.detach() for x in attended_by(graph, 2, 5))
    whole = gpu.attend(sent, received, weight, bias, graph, None)
    for begin, end in ((0, 3), (3, 7)):
        part = gpu.attend(sent, received[begin:end], weight, bias, graph.receiving(begin, end), None)
        assert torch.equal(part, whole[begin:end])


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the released numbers are compared on the CPU")
@pytest.mark.parametrize(
    "bag", ["p1", "p2", *(pytest.param(bag, marks=pytest.mark.slow) for bag in ("p9", "p40noedge", "p40dup"))]
)
def test_one_bag_gives_the_released_numbers(gpu: ModuleType, bag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_backend", lambda x: gpu)
    assert_released_numbers(arrays_of(f"case_{bag}_y1"))


def test_high_scores_do_not_overflow(gpu: ModuleType) -> None:
    graph = graph_between(3, 2, [(0, 0), (1, 0), (2, 0), (2, 1)])
    results = []
    for backend in (gpu, reference):
        sent, *others = attended_by(graph, 1, 4)
        results.append(through(backend, "attend", [(300 * sent).detach().requires_grad_(), *others], graph, None))
    for our, their in zip(*results, strict=True):
        assert our.isfinite().all()
        torch.testing.assert_close(our, their, atol=1e-2, rtol=1e-3)


def test_a_kernel_finds_the_same_mask_as_pytorch(gpu: ModuleType) -> None:
    dropout = dropout_on(20)
    assert dropout is not None
    ones = torch.ones(20, 32, device=DEVICE)
    rising = torch.arange(32.0, device=DEVICE).expand(20, 32)
    dropped = gpu.residual_block(rising, 0 * ones, ones[0], 100 * ones[0], 1.0, dropout)
    assert torch.equal(dropped == 0, dropout.keep(32) == 0)
    graph = graph_between(1, 20, [(0, i) for i in range(20)])
    row = torch.ones(1, 4, device=DEVICE)
    attended = gpu.attend(row, row.expand(20, 4), row.view(4, 1), 0 * row[0], graph, dropout)
    torch.testing.assert_close(attended, dropout.keep(4))


def test_all_may_be_dropped(gpu: ModuleType) -> None:
    graph = graph_between(2, 2, [(0, 0), (1, 0), (1, 1)])
    dropout = Dropout(torch.tensor([0, 5, 2**32 - 1], device=DEVICE), 1.0)
    assert dropout.threshold == 2**32 - 1
    inputs = attended_by(graph, 1, 4)
    out, *gradients = through(gpu, "attend", inputs, graph, dropout)
    assert torch.equal(out, inputs[3].expand(2, 4))
    assert not any(gradient.any() for gradient in gradients[:3])


def test_of_nothing_comes_nothing(gpu: ModuleType) -> None:
    for receivers in (0, 3):
        graph = graph_between(0, receivers, [])
        inputs = attended_by(graph, 2, 5)
        out, *gradients = through(gpu, "attend", inputs, graph, None)
        assert torch.equal(out, inputs[3].expand(receivers, 10))
        assert not any(gradient.any() for gradient in gradients[:3])
    out, *gradients = through(gpu, "residual_block", inputs_of((0, 4), (0, 4), (4,), (4,)), 1.0, None)
    assert out.shape == (0, 4) and not any(gradient.any() for gradient in gradients)


def test_bits_do_not_depend_on_the_run(gpu: ModuleType) -> None:
    edges = np.random.default_rng(0).integers(0, 12, (30, 2))
    graph = graph_between(12, 12, [tuple(edge) for edge in edges.tolist()])
    drops = dropout_on(30)
    block = inputs_of((12, 10), (12, 10), (10,), (10,))
    once, again = (
        [
            *through(gpu, "attend", attended_by(graph, 2, 5), graph, drops),
            *through(gpu, "residual_block", block, 1.0, None),
        ]
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_the_device_and_the_type_choose_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, dtype: torch.dtype = torch.float32) -> str:
        return kernels._backend(SimpleNamespace(device=torch.device(device), dtype=dtype)).__name__

    monkeypatch.setattr(kernels, "triton_works", lambda: True)
    assert chosen("cpu") == cpu.__name__
    assert chosen("cuda") == "momkd_ray.model.kernels.triton_gpu"
    assert chosen("cuda", torch.float64) == chosen("mps") == reference.__name__
    monkeypatch.setattr(kernels, "triton_works", lambda: False)
    assert chosen("cuda") == reference.__name__


COMPILE = """
import subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from momkd_ray.model.kernels import triton_attention as attention, triton_block as block, triton_launch

SCALARS = {"threshold": "i64", "scale": "fp32", "alpha": "fp32", "patches": "i32"}
INDICES = ("received_P1", "source_M", "sent_P1", "message_M", "target_M")


def compile_for(arch, kernel, width, drops):
    options = {**triton_launch._sizes(width), "ROWS": 4, "TOGETHER": attention.TOGETHER}
    constants = {name: options.pop(name) for name in ("WIDTH", "PADDED", "ROWS", "TOGETHER")}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    if not drops:
        constants |= {name: None for name in kernel.arg_names if name.startswith("keys")}
    types = {name: "*i64" if name.startswith("keys") else "*i32" if name in INDICES else "*fp32"
             for name in kernel.arg_names} | SCALARS
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm


for arch in (80, 90):
    for drops in (False, True):
        for kernel, width in ((attention.attend_rows, 256), (attention.attend_rows_backward_received, 256),
                              (attention.attend_rows_backward_sent, 256), (block.block_rows, 512),
                              (block.block_rows_backward, 512)):
            code = compile_for(arch, kernel, width, drops)
            with open(sys.argv[1], "wb") as file:
                file.write(code["cubin"])
            tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", sys.argv[1]]
            used = subprocess.run(tool, check=True, capture_output=True, text=True).stdout.split()
            used = [word for word in used if word.startswith(("REG:", "STACK:", "LOCAL:"))]
            atomics = "atom." in code["ptx"] or "red.global" in code["ptx"]
            print(f"sm_{arch}", kernel.__name__, "dropout" if drops else "all", *used, f"atomics:{atomics}")
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_gpus_without_spilling(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE, str(tmp_path / "kernel.cubin")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    print(run.stdout)
    assert len(lines) == 20
    assert all("STACK:0 LOCAL:0 atomics:False" in line for line in lines), run.stdout
