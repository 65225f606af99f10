"""Refuses feature files of another encoder, magnification or patch size than the models were trained on."""

from __future__ import annotations

from collections.abc import Sequence

from momkd_ray.formats.bag import Bag
from momkd_ray.formats.patch_scale import PatchScale, patch_scale
from momkd_ray.input_faults import FileFaultError
from momkd_ray.model.bundle import BundleCard


def check_trained_features(bag: Bag, path: str, cards: Sequence[BundleCard]) -> None:
    """Checks that every model was trained on such features, as far as the file and the model's card say.

    Args:
        bag: read from a feature file.
        path: of the file.
        cards: of the models, which have one encoder.

    Raises:
        FileFaultError: the encoder or the scale is another; the sentence names both.
    """
    encoder, own = bag.provenance.get("encoder"), cards[0].encoder
    if own and encoder and encoder != own:
        raise FileFaultError(
            "mixed",
            f"{path} contains features of {encoder}, but the model was trained on {own}; extract them with {own}",
        )
    scale = patch_scale(bag.provenance)
    for card in cards:
        trained = [PatchScale(*known) for known in card.scales or ((card.magnification, card.patch_px),)]
        if not any(scale.agrees(known) for known in trained):
            raise FileFaultError(
                "mixed",
                f"{path} is at {scale.text()}, but the model was trained at "
                f"{' and '.join(known.text() for known in trained)}; extract its features at the magnification and "
                "patch size of the model",
            )
