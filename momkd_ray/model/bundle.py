"""Model bundles: a folder with `weights.safetensors`, `model.json` and a README.md for people, and no pickle."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import safetensors.torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError

from momkd_ray import __version__, storage
from momkd_ray.config.dotted_keys import Section
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.errors import InputError
from momkd_ray.model.expected_score import ExpectedScore
from momkd_ray.model.interface import MILModel
from momkd_ray.model.model_card import bundle_readme
from momkd_ray.model.registry import build_model
from momkd_ray.model.training_patients import TrainingPatients

_WEIGHTS, _CARD = "weights.safetensors", "model.json"
README = "README.md"  # made of the card, so that a bundle without it is complete
BUNDLE_FILES = (_WEIGHTS, _CARD)  # the card last: a bundle with a card is complete


class BundleCard(Section):
    """The content of `model.json`: all that prediction needs besides the weights, and the model's origin."""

    format: Literal[1] = 1
    label: str
    classes: tuple[str, ...] = Field(min_length=2)  # the user's names in order; of two, the second is the positive one
    threshold: float | None = Field(ge=0, le=1)  # on the probability of the positive class; None: the likeliest class
    width: int  # D of the features the model was trained on
    neighbors: int  # k of the graph
    graph: Literal["auto", "knn", "none"] = "auto"  # edges of the feature file, by coordinates, or none
    bag: Literal["slide", "patient"] = "slide"  # whether a bag is one slide or all slides of a patient
    genes: int  # inputs of the omics encoder; prediction needs none
    encoder: str | None = None  # the patch encoder, if the feature files name it
    magnification: float | None = None  # of the patches, such as 20, if the feature files record it
    patch_px: int | None = None  # side of the patches in pixels, if the feature files record it
    scales: tuple[tuple[float | None, int | None], ...] = ()  # (magnification, patch_px) of all, if it learnt several
    feature_format: str | None = None  # layout of the feature files, such as trident, if all had one
    model: ModelConfig
    memory: MemoryConfig
    loss: LossConfig
    expected_score: ExpectedScore | None = None  # of a regression: the number that the classes stand for
    origin: dict[str, str | int | float | None] = Field(
        default_factory=dict
    )  # fold, seed, fingerprints, validation AUC
    trained_on: TrainingPatients | None = None  # hashes of the patients of training and validation
    version: str = __version__
    weights_sha256: str = ""


def save_bundle(location: str, model: MILModel, card: BundleCard) -> None:
    """Writes a bundle to a folder, local or `s3://`; `model.json` comes last, so a bundle that has it is complete."""
    weights = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    card = card.model_copy(update={"weights_sha256": hashlib.sha256(weights).hexdigest()})
    storage.write_bytes(storage.join(location, _WEIGHTS), weights)
    storage.write_text(storage.join(location, README), bundle_readme(card))
    storage.write_text(storage.join(location, _CARD), card.model_dump_json(indent=2) + "\n")


def is_bundle(location: str) -> bool:
    """Returns whether a folder holds a bundle's card."""
    return storage.exists(storage.join(location, _CARD))


def load_bundle(location: str) -> tuple[MILModel, BundleCard]:
    """Reads a bundle.

    Args:
        location: its folder, a local path or `s3://` URI.

    Returns:
        The model in evaluation mode on the CPU, and its card.

    Raises:
        InputError: the folder holds no bundle, or one that is damaged or of another format.
    """
    try:
        content = json.loads(storage.read_text(storage.join(location, _CARD)))
        # bundles from before there was a choice are all of this kind
        content["model"].setdefault("pooling", "attention")
        card = BundleCard.model_validate(content)
        weights = storage.read_bytes(storage.join(location, _WEIGHTS))
    except FileNotFoundError as error:
        raise InputError(
            f"{location} is no model bundle: it lacks model.json or weights.safetensors; name the folder model of a "
            "fold, such as runs/pr/fold=0/model"
        ) from error
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{location}/model.json is not a card this version reads: {reason}") from error
    if hashlib.sha256(weights).hexdigest() != card.weights_sha256:
        raise InputError(f"{location}/weights.safetensors is damaged: its SHA-256 differs from model.json's")
    model = build_model(
        card.model, card.memory, card.loss, width=card.width, genes=card.genes, classes=len(card.classes)
    )
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise InputError(f"{location}: the weights do not fit the sizes in model.json") from error
    return model.eval(), card
