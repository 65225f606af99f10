"""Small models, their bundle cards, and the numbers of the released implementation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.formats.bag import Bag
from momkd_ray.model.bundle import BundleCard
from momkd_ray.model.momkd import MoMKD
from momkd_ray.model.released_checkpoint import RELEASED_MEMORY, RELEASED_NAMES, model_from_released

DATA = Path(__file__).parents[1] / "data"


CASES = sorted(p.stem for p in DATA.glob("case_*.npz"))


def released_state() -> dict[str, torch.Tensor]:
    with np.load(DATA / "state_dict_small.npz") as arrays:
        return {k: torch.from_numpy(np.array(arrays[k])) for k in arrays.files}


def released_model() -> MoMKD:
    return model_from_released(released_state(), dropout=0.0, omics_dropout=0.0)


def bag_of(features: np.ndarray, coords: np.ndarray, edge_index: np.ndarray, slide_id: str = "s") -> Bag:
    order = np.argsort(edge_index[0], kind="stable")
    degree = np.bincount(edge_index[0], minlength=len(features))
    return Bag(
        slide_id=slide_id,
        features=features,
        coords=coords.astype(np.int32),
        edge_indptr=np.concatenate([[0], np.cumsum(degree)]).astype(np.int32),
        edge_indices=edge_index[1][order].astype(np.int32),
        provenance={},
    )


def case_batch(case: dict[str, np.ndarray], label: int, rna: np.ndarray) -> BagBatch:
    bag = bag_of(case["features"], case["coords"], case["edge_index"])
    return collate([bag], labels=[label], omics=[rna])


def arrays_of(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as arrays:
        return {k: np.array(arrays[k]) for k in arrays.files}


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float) -> None:
    ours_np = ours.detach().numpy().reshape(theirs.shape)
    scale = max(1.0, float(np.abs(theirs).max(initial=0)))
    assert np.abs(ours_np - theirs).max(initial=0) <= tolerance * scale


def gradients_by_released_name(model: MoMKD) -> dict[str, torch.Tensor]:
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    memory = grads.pop("memory.raw_parameter_YKS")
    named = {RELEASED_NAMES[name]: grad for name, grad in grads.items()}
    return named | {name: memory[[y]] for y, name in enumerate(RELEASED_MEMORY)}


def assert_released_numbers(case: dict[str, np.ndarray]) -> None:
    """Outputs, losses and gradients of a case, as this model computes them."""
    model, label = released_model(), int(case["label"][0])
    batch = case_batch(case, label, case["rna"][0])

    model.eval()
    with torch.no_grad():
        output = model(batch)
    close(output.logits_BY, case["inference_logits"], 1e-5)
    close(output.attention_P, case["inference_attention"], 1e-5)
    close(output.patches_PS, case["patch_proj"], 1e-5)

    model.train()
    output = model(batch)
    close(output.logits_BY, case["out.logits"], 1e-5)
    close(output.attention_P, case["out.attention"], 1e-5)
    close(output.slide_BS, case["out.wsi_proj"], 1e-5)
    close(output.omics_RS, case["out.rna_proj"], 1e-5)
    close(output.reconstruction_RG, case["out.reconstructed_rna"], 1e-5)
    close(model.memory.components[1], case["out.pos_centers"], 1e-5)
    close(model.memory.components[0], case["out.neg_centers"], 1e-5)

    terms = model.losses(output, batch)
    pairs = {"ce": "ce", "memory": "mem", "align_omics": "align_rna", "align_slide": "align_wsi"}
    for ours, theirs in (pairs | {"reconstruction": "recon", "total": "total"}).items():
        assert abs(terms[ours].item() - float(case[f"loss.{theirs}"])) <= 1e-5 * max(
            1.0, float(case[f"loss.{theirs}"])
        ), ours

    terms["total"].sum().backward()
    grads = gradients_by_released_name(model)
    expected = {k.removeprefix("grad."): v for k, v in case.items() if k.startswith("grad.")}
    assert set(grads) == set(expected)
    for parameter, theirs in expected.items():
        error = np.linalg.norm(grads[parameter].numpy() - theirs)
        # LeakyReLU flips sign near zero, and this weight alone feels it
        tolerance = 1e-2 if parameter.endswith("gat2.lin_r.weight") else 1e-4
        # a gradient that is exactly zero in theory is rounding noise on both sides
        floor = 1e-6 * float(case["grad_norm"])
        assert error <= tolerance * np.linalg.norm(theirs) + floor, parameter
    norm = torch.cat([g.flatten() for g in grads.values()]).norm().item()
    assert norm == pytest.approx(float(case["grad_norm"]), rel=1e-4)


def small_model(rule: str = "ema", dropout: float = 0.0, genes: int = 6) -> MoMKD:
    torch.manual_seed(0)
    sizes = ModelConfig(
        pooling="attention",
        hidden=16,
        heads=2,
        shared=8,
        dropout=dropout,
        omics_hidden=10,
        omics_embedding=10,
        omics_dropout=dropout,
        classifier_hidden=8,
    )
    return MoMKD(sizes, MemoryConfig(rule=rule, components=4), LossConfig(), width=12, genes=genes)


def card_of(model: MoMKD) -> BundleCard:
    return BundleCard(
        label="PR",
        classes=("negative", "positive"),
        threshold=0.4,
        width=model.width,
        neighbors=8,
        genes=model.genes,
        model=model.model_config,
        memory=model.memory_config,
        loss=model.loss_config,
    )
