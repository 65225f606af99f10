"""Agreement with torchmil where it follows the papers: the same weights give the same numbers.

torchmil has one logit where ours are two: its logit is the difference of ours.
"""

from __future__ import annotations

import pytest
import torch
from support.peers import batch_of, peer
from torch import nn

from momkd_ray.model.baselines.abmil import ABMIL
from momkd_ray.model.baselines.clam import CLAMSB
from momkd_ray.model.baselines.dsmil import DSMIL
from momkd_ray.model.baselines.transmil import TransMIL

models = pytest.importorskip("torchmil.models")

HIDDEN, PATCHES = 16, 37


def embedding_of(ours: nn.Module) -> nn.Sequential:
    return nn.Sequential(ours.embedding, nn.ReLU())


def copy(theirs: nn.Module, ours: nn.Module) -> None:
    getattr(theirs, "module", theirs).load_state_dict(ours.state_dict())  # their LazyLinear wraps the layer


def copy_attention(theirs: nn.Module, ours: ABMIL) -> None:
    copy(theirs.fc1, ours.score.value)
    copy(theirs.fc2, ours.score.weight)
    if ours.score.gate is not None:
        copy(theirs.fc_gated, ours.score.gate)


def copy_difference(theirs: nn.Module, ours: nn.Linear) -> None:
    linear = getattr(theirs, "module", theirs)
    with torch.no_grad():
        linear.weight.copy_(ours.weight[1:] - ours.weight[:1])
        linear.bias.copy_(ours.bias[1:] - ours.bias[:1])


def difference(logits_BY: torch.Tensor) -> torch.Tensor:
    return logits_BY[:, 1] - logits_BY[:, 0]


@pytest.mark.parametrize("name", ["abmil", "gated_abmil"])
def test_abmil(name: str) -> None:
    ours, batch = peer(name, hidden=HIDDEN).eval(), batch_of([PATCHES])
    assert isinstance(ours, ABMIL)
    theirs = models.ABMIL(in_shape=(ours.width,), att_dim=128, gated=name == "gated_abmil", feat_ext=embedding_of(ours))
    copy_attention(theirs.pool, ours)
    copy_difference(theirs.classifier, ours.classifier)
    logit, score = theirs(batch.features_PD[None], return_att=True)
    output = ours(batch)
    torch.testing.assert_close(difference(output.logits_BY), logit.view(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.attention_P, score.softmax(-1).view(-1), atol=1e-5, rtol=1e-5)


def test_clam() -> None:
    """torchmil broadcasts the margin of its instance loss over pairs of patches, so ours is compared with sums."""
    ours, batch = peer("clam_sb", hidden=HIDDEN).eval(), batch_of([PATCHES])
    assert isinstance(ours, CLAMSB)
    theirs = models.CLAM_SB(in_shape=(ours.width,), att_dim=128, k_sample=8, gated=True, feat_ext=embedding_of(ours))
    copy_attention(theirs.pool, ours)
    copy_difference(theirs.classifier, ours.classifier)
    output = ours(batch)
    torch.testing.assert_close(
        difference(output.logits_BY), theirs(batch.features_PD[None]).view(-1), atol=1e-5, rtol=1e-5
    )
    order = output.attention_P.argsort(descending=True)  # type: ignore[union-attr]
    highest, lowest = order[:8], order[-8:]
    means = []
    for y, classifier in enumerate(ours.patch_classifiers):
        own = y == int(batch.labels_B)  # type: ignore[arg-type]
        targets = [(p, int(own)) for p in highest] + ([(p, 0) for p in lowest] if own else [])
        terms = []
        for patch, target in targets:
            score = classifier(output.h_PH[patch])
            terms.append(torch.log(1 + torch.exp(score[1 - target] + 1 - score[target])))
        means.append(torch.stack(terms).mean())
    torch.testing.assert_close(ours.losses(output, batch)["instance"][0], torch.stack(means).mean())


def test_dsmil() -> None:
    ours, batch = peer("dsmil", hidden=HIDDEN).eval(), batch_of([PATCHES])
    assert isinstance(ours, DSMIL)
    theirs = models.DSMIL(in_shape=(ours.width,), att_dim=128, feat_ext=embedding_of(ours))
    copy(theirs.q_nn, ours.query)
    copy(theirs.inst_classifier, ours.patch_classifier)
    copy(theirs.bag_classifier, ours.bag_classifier)
    bag, attention = theirs(batch.features_PD[None], return_att=True)
    output = ours(batch)
    torch.testing.assert_close(output.bag_BC[:, 0], bag.view(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.attention_P, attention.view(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(difference(output.logits_BY), theirs.predict(batch.features_PD[None]).view(-1))


@pytest.mark.parametrize("patches", [PATCHES, 5])
def test_transmil(patches: int) -> None:
    ours, batch = peer("transmil", hidden=HIDDEN).eval(), batch_of([patches])
    assert isinstance(ours, TransMIL)
    theirs = models.TransMIL(in_shape=(ours.width,), att_dim=HIDDEN, n_heads=8, feat_ext=embedding_of(ours))
    with torch.no_grad():
        theirs.cls_token.copy_(ours.class_token)
    pairs = [
        (theirs.norm, ours.norm),
        (theirs.pos_layer.proj, ours.position.conv7),
        (theirs.pos_layer.proj1, ours.position.conv5),
        (theirs.pos_layer.proj2, ours.position.conv3),
        (theirs.layers[0].norm1, ours.norm1),
        (theirs.layers[1].norm1, ours.norm2),
        (theirs.layers[0].att_module.qkv_nn, ours.attention1.to_qkv),
        (theirs.layers[1].att_module.qkv_nn, ours.attention2.to_qkv),
    ]
    for their, mine in pairs:
        copy(their, mine)
    copy_difference(theirs.classifier, ours.classifier)
    logit = theirs(batch.features_PD[None])
    torch.testing.assert_close(difference(ours(batch).logits_BY), logit.view(-1), atol=1e-5, rtol=1e-5)
