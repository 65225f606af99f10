"""The method: parity with the released implementation, and the properties it must have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.fold_tasks import PUBLISHED
from support.models import (
    CASES,
    arrays_of,
    assert_released_numbers,
    bag_of,
    card_of,
    case_batch,
    close,
    released_model,
    released_state,
    small_model,
)

from momkd_ray.batches import tiles
from momkd_ray.batches.collate import collate
from momkd_ray.config.sections import LossConfig, MemoryConfig
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag
from momkd_ray.model import kernels
from momkd_ray.model.bundle import load_bundle, save_bundle
from momkd_ray.model.memory import MomentumMemory, spherical_kmeans
from momkd_ray.model.released_checkpoint import RELEASED_LOSSES, RELEASED_MEMORY, RELEASED_NAMES, read_released


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["cpu", "reference", "tiles"])
def test_one_bag_gives_the_released_numbers(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "reference":
        monkeypatch.setattr(kernels, "_backend", lambda x: kernels.reference)
    if way == "tiles":
        monkeypatch.setitem(tiles.MAX_UNTILED_PATCHES, "cpu", 0)
        monkeypatch.setitem(tiles.TILE_PATCHES, "cpu", 16)
    assert_released_numbers(arrays_of(name))


def test_six_adamw_steps_follow_the_released_trajectory() -> None:
    course, model = arrays_of("trajectory"), released_model().train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=1e-4)
    for bag, label, rna, expected in zip(
        course["bag"], course["label"], course["rna"], course["total_loss"], strict=True
    ):
        batch = case_batch(arrays_of(f"case_{bag}_y{label}"), int(label), rna)
        optimiser.zero_grad()
        total = model.losses(model(batch), batch)["total"].sum()
        assert total.item() == pytest.approx(expected, abs=1e-4)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 32.0)
        optimiser.step()
    state = model.state_dict()
    memory = state.pop("memory.raw_parameter_YKS")
    for y, name in enumerate(RELEASED_MEMORY):
        close(memory[[y]], course[f"final.{name}"], 1e-4)
    for name, value in state.items():
        close(value, course[f"final.{RELEASED_NAMES[name]}"], 1e-4)


def test_kmeans_gives_the_released_centroids() -> None:
    case = arrays_of("bootstrap_kmeans")
    centroids, assigned = spherical_kmeans(
        torch.from_numpy(case["x"]), torch.from_numpy(case["init_idx"]), int(case["iters"])
    )
    close(centroids, case["centroids"], 1e-5)
    assert (assigned.numpy() == case["last_assign"]).all()


def random_bag(slide_id: str, patches: int, width: int = 12, k: int = 3) -> Bag:
    rng = np.random.default_rng([patches, *slide_id.encode()])
    edges = [(i, j) for i in range(patches) for j in rng.permutation(patches)[:k] if i != j]
    edge_index = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    coords = rng.integers(0, 9999, (patches, 2))
    return bag_of(rng.standard_normal((patches, width), dtype=np.float32), coords, edge_index, slide_id)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_bags_side_by_side_give_what_each_gives_alone(dropout: float) -> None:
    model = small_model(dropout=dropout).train()
    rng = np.random.default_rng(0)
    bags = [random_bag(f"s{p}", p) for p in (1, 5, 17, 2)]
    omics = [rng.standard_normal(6), None, rng.standard_normal(6), None]
    together = collate(bags, [0, 1, 1, 0], omics, [11, 12, 13, 14])
    output = model(together)
    terms = model.losses(output, together)
    start = 0
    for b, bag in enumerate(bags):
        alone = collate([bag], [[0, 1, 1, 0][b]], [omics[b]], [11 + b])
        one = model(alone)
        torch.testing.assert_close(output.logits_BY[b], one.logits_BY[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            output.attention_P[start : start + bag.n_patches], one.attention_P, atol=1e-6, rtol=1e-5
        )
        for name, value in model.losses(one, alone).items():
            torch.testing.assert_close(terms[name][b], value[0], atol=1e-5, rtol=1e-5)
        start += bag.n_patches
    assert terms["align_omics"][1] == terms["reconstruction"][3] == 0


def test_the_order_of_patches_does_not_matter() -> None:
    model, bag = small_model().eval(), random_bag("s", 30)
    order = np.random.default_rng(1).permutation(30)
    place = np.argsort(order)
    rows = np.repeat(np.arange(30), np.diff(bag.edge_indptr))
    shuffled = bag_of(bag.features[order], bag.coords[order], place[np.stack([rows, bag.edge_indices])])
    p, attention = model.predict(collate([bag]))
    p_shuffled, attention_shuffled = model.predict(collate([shuffled]))
    torch.testing.assert_close(p, p_shuffled, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attention[order], attention_shuffled, atol=1e-6, rtol=1e-5)


def test_dropout_is_drawn_from_the_bag_seed_alone() -> None:
    model, bag = small_model(dropout=0.5).train(), random_bag("s", 9)
    first = model(collate([bag], seeds=[5])).logits_BY
    torch.manual_seed(99)
    assert torch.equal(first, model(collate([bag], seeds=[5])).logits_BY)
    assert not torch.equal(first, model(collate([bag], seeds=[6])).logits_BY)


@pytest.mark.parametrize("rule", ["ema", "gradient", "fixed"])
def test_histology_and_omics_meet_only_in_the_memory(rule: str) -> None:
    model = small_model(rule).train()
    batch = collate([random_bag("s", 9)], [1], [np.ones(6)])
    terms = model.losses(model(batch), batch)
    slide = [
        *model.slide_encoder.parameters(),
        *model.project_patch.parameters(),
        *model.classifier1.parameters(),
    ]
    for name in ("align_omics", "reconstruction"):
        grads = torch.autograd.grad(terms[name].sum(), slide, retain_graph=True, allow_unused=True)
        assert all(g is None for g in grads)
    for name in ("ce", "align_slide", "memory"):
        grads = torch.autograd.grad(terms[name].sum(), model.omics_parameters(), retain_graph=True, allow_unused=True)
        assert all(g is None for g in grads)
    if rule == "gradient":
        memory = model.memory.raw_parameter_YKS
        reach = {
            name: torch.autograd.grad(terms[name].sum(), memory, retain_graph=True, allow_unused=True)[0]
            for name in ("ce", "reconstruction", "align_slide", "align_omics", "memory")
        }
        assert reach["ce"] is None
        assert reach["reconstruction"] is None
        assert reach["align_slide"].abs().sum(dim=(1, 2)).min() > 0
        assert reach["align_omics"].abs().sum(dim=(1, 2)).min() > 0
        assert reach["memory"][0].abs().sum() == 0
        assert reach["memory"][1].abs().sum() > 0


def test_ema_is_the_moving_average_of_the_responsibilities() -> None:
    memory = MomentumMemory(MemoryConfig(components=3, momentum=0.9, reseed=0.0), 2, 5)
    before, mass, c = memory.accumulator_YKS.clone(), memory.mass_YK.clone(), memory.components.clone()
    evidence = torch.nn.functional.normalize(torch.randn(4, 5), dim=-1)
    labels = torch.tensor([0, 1, 1, 1])
    memory.update(evidence, labels, bags=2)
    expected, expected_mass = 0.9 * before, 0.9 * mass
    for e, y in zip(evidence, labels, strict=True):
        share = torch.softmax(10.0 * c[y] @ e, dim=0)
        expected[y] += 0.1 * share[:, None] * e / 2
        expected_mass[y] += 0.1 * share / 2
    torch.testing.assert_close(memory.accumulator_YKS, expected)
    torch.testing.assert_close(memory.mass_YK, expected_mass)
    torch.testing.assert_close(memory.components.norm(dim=-1), torch.ones(2, 3))


def test_a_component_that_dies_starts_again_from_evidence() -> None:
    memory = MomentumMemory(MemoryConfig(components=3, reseed=0.5), 2, 4)
    memory.initialise(torch.eye(4)[:3].expand(2, 3, 4).contiguous())
    with torch.no_grad():
        memory.mass_YK[1, 2] *= 0.01
        memory.accumulator_YKS[1, 2] *= 0.01
    e = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    memory.update(e, torch.tensor([1]), bags=1)
    assert (memory.components[1, 2] @ e[0]) > 0.9
    assert memory.mass_YK[1, 2] == pytest.approx(memory.mass_YK[1].mean().item(), rel=0.5)
    torch.testing.assert_close(memory.components[0], torch.eye(4)[:3])  # the other class saw nothing


@pytest.mark.parametrize("rule", ["gradient", "fixed"])
def test_only_the_ema_rule_moves_on_update(rule: str) -> None:
    memory = MomentumMemory(MemoryConfig(rule=rule, components=3), 2, 4)
    before = memory.components.clone()
    memory.update(torch.eye(4)[:1], torch.tensor([1]), bags=1)
    assert torch.equal(before, memory.components)


@pytest.mark.parametrize("rule", ["ema", "gradient", "fixed"])
def test_a_bundle_predicts_what_its_model_did(rule: str, tmp_path: Path) -> None:
    model = small_model(rule).eval()
    save_bundle(str(tmp_path / "model"), model, card_of(model))
    again, card = load_bundle(str(tmp_path / "model"))
    batch = collate([random_bag("s", 9)])
    assert torch.equal(model.predict(batch)[0], again.predict(batch)[0])
    assert card.classes == ("negative", "positive")
    assert not list((tmp_path / "model").glob(".*"))


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    model = small_model().eval()
    save_bundle(str(tmp_path), model, card_of(model))
    weights = bytearray((tmp_path / "weights.safetensors").read_bytes())
    weights[-5] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="damaged"):
        load_bundle(str(tmp_path))
    with pytest.raises(InputError, match="no model bundle"):
        load_bundle(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("nesting", [None, "model_state_dict"])
def test_a_released_checkpoint_is_read_with_its_own_sizes(tmp_path: Path, nesting: str | None) -> None:
    state = released_state()
    torch.save(state if nesting is None else {nesting: state, "epoch": 3}, tmp_path / "best.pt")
    model = read_released(str(tmp_path / "best.pt"))
    assert (model.width, model.genes) == (32, 24)
    case = arrays_of("case_p9_y1")
    p, _ = model.eval().predict(collate([bag_of(case["features"], case["coords"], case["edge_index"])]))
    close(p, torch.from_numpy(case["inference_logits"]).softmax(-1).numpy(), 1e-5)


def test_what_is_no_released_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pt")
    state = released_state()
    state["wsi_encoder.gat2.lin_l.weight"] = torch.ones(3, 3)
    torch.save(state, tmp_path / "shapes.pt")
    for name, words in {
        "text": "cannot be read",
        "other": "no '",
        "shapes": "fit",
        "none": "no checkpoint",
    }.items():
        with pytest.raises(InputError, match=words):
            read_released(str(tmp_path / f"{name}.pt"))


def test_the_published_configuration_has_the_losses_of_the_released_checkpoint() -> None:
    assert LossConfig.model_validate(PUBLISHED["loss"]) == RELEASED_LOSSES
