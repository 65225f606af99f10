"""Every peer: it learns, keeps bags apart, draws dropout from the bags' seeds, trains like MoMKD, and is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from support.peers import PEERS, batch_of, peer, summary_of

from momkd_ray.batches.collate import BagBatch
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.model.baselines.transmil import NystromAttention
from momkd_ray.model.bundle import BundleCard, load_bundle, save_bundle
from momkd_ray.model.interface import MILModel

SIZES = (9, 1, 30, 4, 17, 2, 12, 5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products take longer on several threads, much longer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(
    model: MILModel, batch: BagBatch, steps: int, lr: float = 0.01, until: Callable[[], bool] = lambda: False
) -> None:
    """Train at most so many steps, in evaluation mode at the end and whenever `until` is asked, every tenth step."""
    model.prepare(summary_of(batch))
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        if step % 10 == 0 and step and until():
            break
        model.train()
        optimiser.zero_grad()
        model.losses(model(batch), batch)["total"].mean().backward()
        optimiser.step()
        model.eval()


@pytest.mark.parametrize("name", PEERS)
def test_it_overfits_a_tiny_cohort(name: str) -> None:
    batch, model = batch_of(SIZES), peer(name)
    y_B = batch.labels_B.numpy()  # type: ignore[union-attr]
    with_omics = np.array(batch.omics_per_bag, bool) if name == "omics_only" else np.ones(len(y_B), bool)

    def overfits() -> bool:
        return bool(((model.predict(batch)[0][:, 1].numpy() > 0.5) == y_B)[with_omics].all())

    train(model, batch, 150, until=overfits)
    assert overfits()


@pytest.mark.parametrize("name", PEERS)
def test_it_beats_chance_on_bags_that_it_has_not_seen(name: str) -> None:
    sizes = [12, 20, 7, 33] * 15
    model = peer(name)
    train(model, batch_of(sizes), 60, lr=0.05 if "pool" in name else 0.01)
    unseen = batch_of(sizes, first_seed=1000)
    p_B = model.predict(unseen)[0][:, 1].numpy()
    assert roc_auc_score(unseen.labels_B.numpy(), p_B) > 0.7  # type: ignore[union-attr]


@pytest.mark.parametrize("name", PEERS)
def test_a_bag_is_predicted_alike_alone_and_in_a_batch(name: str) -> None:
    together, model = batch_of(SIZES), peer(name).eval()
    p_BY, attention_P = model.predict(together)
    start = 0
    for i, size in enumerate(SIZES):
        alone = _one(together, i)
        p_1Y, own_P = model.predict(alone)
        torch.testing.assert_close(p_1Y[0], p_BY[i], atol=1e-6, rtol=1e-5)
        if attention_P is not None and own_P is not None:
            torch.testing.assert_close(own_P, attention_P[start : start + size], atol=1e-6, rtol=1e-5)
            assert own_P.sum().item() == pytest.approx(1, abs=1e-5)
        start += size


@pytest.mark.parametrize("name", PEERS)
def test_dropout_and_draws_follow_a_bags_seed_alone(name: str) -> None:
    together, model = batch_of(SIZES), peer(name, dropout=0.5).train()
    names = [n for n in model.loss_names if not (name == "batch_alignment" and n in ("align", "total"))]
    losses = model.losses(model(together), together)
    for i in range(len(SIZES)):
        alone = _one(together, i)
        of_bag = model.losses(model(alone), alone)
        for term in names:
            torch.testing.assert_close(of_bag[term][0], losses[term][i], atol=1e-5, rtol=1e-4, msg=term)


@pytest.mark.parametrize("name", PEERS)
def test_every_parameter_has_a_gradient_with_and_without_omics(name: str) -> None:
    model = peer(name).train()
    for batch in (batch_of(SIZES), batch_of(SIZES, omics=False)):
        model.zero_grad()
        total = model.losses(model(batch), batch)["total"].sum()
        if batch.omics_RG is None:
            total = total + sum(p.sum() * 0.0 for p in model.omics_parameters())
        total.backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", PEERS)
def test_a_bundle_brings_it_back(name: str, tmp_path: Path) -> None:
    batch, model = batch_of(SIZES), peer(name)
    model.prepare(summary_of(batch))
    config = model.model_config
    card = BundleCard(
        label="PR", classes=("no", "yes"), threshold=0.5, width=model.width, neighbors=8, genes=model.genes,
        model=config, memory=MemoryConfig(components=4), loss=LossConfig(),
    )  # fmt: skip
    save_bundle(str(tmp_path), model, card)
    again, read = load_bundle(str(tmp_path))
    assert (type(again), read.model.name) == (type(model), name)
    assert torch.equal(again.predict(batch)[0], model.eval().predict(batch)[0])


def test_an_unregistered_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'resnet', but must be one of momkd, mean_pool"):
        ModelConfig(name="resnet")


def _one(batch: BagBatch, i: int) -> BagBatch:
    """One bag of a batch of `SIZES`."""
    alone = batch_of([SIZES[i]], first_seed=i, omics=False)
    start = sum(SIZES[:i])
    row = None
    if batch.omics_bag_R is not None and i in batch.omics_bag_R.tolist():
        row = batch.omics_RG[batch.omics_bag_R.tolist().index(i)][None]  # type: ignore[index]
    assert batch.labels_B is not None
    return replace(
        alone,
        features_PD=batch.features_PD[start : start + SIZES[i]],
        labels_B=batch.labels_B[i : i + 1],
        omics_RG=row,
        omics_bag_R=None if row is None else torch.tensor([0]),
        omics_per_bag=(int(row is not None),),
    )


@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_attention_between_no_more_tokens_than_landmarks_is_what_nystroms_approximates(tokens: int) -> None:
    torch.manual_seed(tokens)
    attention = NystromAttention(width=16, heads=2, landmarks=8).double()
    x_VTH = torch.randn(3, tokens, 16, dtype=torch.float64)
    padded = torch.nn.functional.pad(x_VTH, (0, 0, 8 - tokens, 0))
    q, k, v = (part.view(3, 8, 2, 8).transpose(1, 2) for part in attention.to_qkv(padded).chunk(3, -1))
    matrix_VALL = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    expected = matrix_VALL @ torch.linalg.pinv(matrix_VALL) @ matrix_VALL @ v
    torch.testing.assert_close(attention([x_VTH])[0], expected.transpose(1, 2).flatten(2)[:, 8 - tokens :])


def test_bags_of_other_sizes_beside_it_do_not_change_a_bags_attention() -> None:
    torch.manual_seed(0)
    attention = NystromAttention(width=16, heads=2, landmarks=8).double()
    groups = [torch.randn(2, tokens, 16, dtype=torch.float64) for tokens in (5, 9, 8, 40)]
    for together, x_VTH in zip(attention(groups), groups, strict=True):
        for bag_VTH, alone_VTH in zip(together.split(1), x_VTH.split(1), strict=True):
            torch.testing.assert_close(bag_VTH, attention([alone_VTH])[0])
