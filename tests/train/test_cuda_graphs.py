"""Room left over in a size class changes no number; recorded steps are those that are not recorded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig, TrainConfig
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.model.momkd import MoMKD
from momkd_ray.train.collectives import SingleProcess
from momkd_ray.train.cuda_graphs import CLASSES_AN_OCTAVE, CudaGraphCache, StaticBuffers, padded_size
from momkd_ray.train.step import Stepper

WIDTH, GENES = 12, 6
CPU = torch.device("cpu")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def bag_of(patches: int, seed: int) -> Bag:
    rng = np.random.default_rng(seed)
    coords = np.stack(np.divmod(rng.permutation(4 * patches)[:patches], 2 * int(patches**0.5) + 1), 1).astype(np.int32)
    features = rng.standard_normal((patches, WIDTH), dtype=np.float32)
    return Bag(f"bag-{seed}", features, coords, *knn_graph(coords, 8), {})


def batch_of(sizes: list[int], omics: int, seed: int = 0, device: torch.device = CPU) -> BagBatch:
    """Bags of some sizes, the first of them with omics."""
    bags = [bag_of(patches, seed + b) for b, patches in enumerate(sizes)]
    rows = [np.random.default_rng(seed + b).standard_normal(GENES) if b < omics else None for b in range(len(bags))]
    return collate(bags, [b % 2 for b in range(len(bags))], rows, [seed + b for b in range(len(bags))], device)


def model_of(hidden: int = 16, rule: str = "ema") -> MoMKD:
    torch.manual_seed(0)
    config = ModelConfig(hidden=hidden, shared=8, omics_hidden=10, omics_embedding=10, classifier_hidden=8)
    memory = MemoryConfig.model_validate({"components": 4, "rule": rule})
    return MoMKD(config, memory, LossConfig(), width=WIDTH, genes=GENES)


def in_float64(batch: BagBatch) -> BagBatch:
    return batch.map_tensors(lambda x: x.double() if x.is_floating_point() else x)


def gradients(model: MoMKD, batch: BagBatch) -> tuple[torch.Tensor, ...]:
    """Losses and the gradients of their sum, for the parameters that the batch touches."""
    terms = model.losses(model.train()(batch), batch)
    found = torch.autograd.grad(terms["total"].sum(), list(model.parameters()), allow_unused=True)
    return (*(term.detach() for term in terms.values()), *(g for g in found if g is not None))


@given(st.integers(1, 10**6))
def test_a_size_class_is_an_eighth_larger_at_most(n: int) -> None:
    room = padded_size(n)
    assert n <= room <= max(n * (1 + 1 / CLASSES_AN_OCTAVE), n + 1)
    assert room % 2 == 0
    assert padded_size(room) == room


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    before=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    omics=st.integers(0, 3),
)
def test_room_left_over_and_what_lay_there_before_change_no_number(
    sizes: list[int], before: list[int], omics: int
) -> None:
    model = model_of().double()  # in which a size's other order of sums is nothing
    room = StaticBuffers(CPU, model.dropout_layers)
    room.load(in_float64(batch_of(before, 1, seed=7)))
    batch = in_float64(batch_of(sizes, omics))
    roomy = room.load(batch)
    assert len(roomy.features_PD) == padded_size(sum(sizes))
    assert len(roomy.graph.source_M) == padded_size(len(batch.graph.source_M))
    for ours, theirs in zip(gradients(model, roomy), gradients(model, batch), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-7)
    attention_P = model.eval().predict(roomy)[1]
    assert attention_P[sum(sizes) :].eq(0).all()
    torch.testing.assert_close(attention_P[: sum(sizes)], model.predict(batch)[1], atol=1e-6, rtol=1e-5)


def test_bags_of_one_size_class_lie_at_the_same_addresses() -> None:
    room = StaticBuffers(CPU, model_of().dropout_layers)

    def addresses(batch: BagBatch) -> list[int]:
        found: list[int] = []
        room.load(batch).map_tensors(lambda x: (found.append(x.data_ptr()), x)[1])
        return found

    assert addresses(batch_of([250], 1)) == addresses(batch_of([241], 1, seed=3))
    assert addresses(batch_of([250], 1)) != addresses(batch_of([257], 1))


@on_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rule", ["ema", "gradient"])
def test_recorded_steps_are_those_that_are_not(rule: str, precision: str) -> None:
    """Sizes that come again and again, with and without omics, one or several bags, and a new learning rate."""
    device = torch.device("cuda")
    steppers = []
    for _ in range(2):
        config = TrainConfig.model_validate({"precision": precision, "lr": 1e-3})
        steppers.append(Stepper(model_of(64, rule), config, SingleProcess(), device))
    recorded, plain = steppers
    plain.recorded.possible = False
    assert recorded.recorded.possible
    course = [([250], 1), ([100, 60], 1), ([245], 1), ([251], 0), ([248], 1), ([60, 100], 1), ([253], 0)]
    for epoch in range(3):
        for stepper in steppers:
            stepper.optimiser.param_groups[0]["lr"] = 1e-3 / (1 + epoch)
        for place, (sizes, omics) in enumerate(course):
            batch = batch_of(sizes, omics, seed=10 * place + 100 * epoch, device=device)
            ours, theirs = (stepper.step([batch], len(sizes)) for stepper in steppers)
            tolerance = 1e-4 if precision == "fp32" else 5e-2
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
        assert 2 <= len(recorded.recorded._recorded) <= 3
    if precision == "fp32":
        for ours, theirs in zip(recorded.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@on_gpu
def test_recorded_predictions_are_those_that_are_not_also_of_other_weights() -> None:
    device = torch.device("cuda")
    model = model_of(64).to(device).eval()
    predicted = CudaGraphCache(lambda batch: model.predict(batch)[0], device, model)
    for seed in range(4):
        for patches in (250, 30, 249):
            batch = batch_of([patches], 0, seed=seed, device=device).to(device)
            torch.testing.assert_close(predicted(batch), model.predict(batch)[0], atol=1e-5, rtol=1e-5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
    assert len(predicted._recorded) == 2


@on_gpu
def test_a_step_waits_for_nothing() -> None:
    device = torch.device("cuda")
    stepper = Stepper(model_of(64), TrainConfig(), SingleProcess(), device)
    batches = [batch_of([250], 1, seed=seed, device=device) for seed in range(4)]
    for batch in batches[:3]:  # warmed up, recorded, replayed
        stepper.step([batch], 1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.step(batches[3:], 1)
        stepper._update([batches[3].to(device)], 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
