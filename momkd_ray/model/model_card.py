"""The README.md of a bundle: a model card in Hugging Face's form, made of the fields of `model.json` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from momkd_ray.config.model_names import pools_components

if TYPE_CHECKING:
    from momkd_ray.model.bundle import BundleCard

NOT_RECORDED = "not recorded"
LIBRARY, PIPELINE = "momkd-ray", "image-classification"
TAGS = ("histopathology", "multiple-instance-learning", "whole-slide-image")
_BODY = """\
# {label}: {told}, from histology

One model of type `{name}`, fold {fold} of a cross-validation, that predicts {label} ({told}) of a {bag} from patch
features alone.

## Intended use and limits

Research on slides like those of the training cohort; not a medical device, not for diagnosis. Not for another encoder,
stain, magnification or population before it has been evaluated there.

## Input

| | |
|---|---|
| patch encoder | {encoder} |
| width of the features | {width} |
| magnification, patch size | {scale} |
| graph | {graph} |
| a bag is | {bag_is} |

## Output

{output}

{calibration}

## Training

| | |
|---|---|
| fingerprint of cohort, folds, features and configuration | {fingerprint} |
| patients in training, validation, test | {counts} |
| trained again with the validation patients | {refit} |
| share of {last} among training patients | {prevalence} |
| seed, kept epoch | {seed}, {epoch} |
| device, precision | {device}, {precision} |
| genes that taught it | {genes} |
| written by | momkd-ray {version} |
| SHA-256 of the weights | `{sha256}` |

{known}

## Measured

{measured}

{validation} The test patients were in neither training nor validation.

## Use

```bash
momkd-ray predict FOLDER_OF_THIS_FILE --features features --out predictions.csv
```
"""


def bundle_readme(card: BundleCard) -> str:
    """Returns the model card of one bundle; the same card gives the same text."""
    classes = [_plain(name) for name in card.classes]
    label, told = _plain(card.label), " or ".join(classes) if len(classes) == 2 else ", ".join(classes)
    measured = _measured(card)
    front: dict[str, Any] = {
        "library_name": LIBRARY,
        "license": "unknown",
        "pipeline_tag": PIPELINE,
        "tags": [*TAGS, card.model.name],
        "metrics": sorted({name for name, _, _ in measured}),
    }
    title = f"{_one_line(card.label)}: {', '.join(map(_one_line, card.classes))}"
    if tested := [(name, value) for name, _, value in measured if value is not None]:
        results = [{"type": name, "value": round(value, 4)} for name, value in tested]
        front["model-index"] = [
            {
                "name": f"{_one_line(card.label)} {card.model.name}",
                "results": [
                    {
                        "task": {
                            "type": PIPELINE,
                            "name": title,
                        },
                        "dataset": {"type": "private", "name": f"test patients of fold {_origin(card, 'fold')}"},
                        "metrics": results,
                    }
                ],
            }
        ]
    body = _BODY.format(
        label=label,
        told=told,
        name=card.model.name,
        fold=_origin(card, "fold"),
        bag=card.bag,
        bag_is="one slide" if card.bag == "slide" else "all slides of a patient",
        encoder=_plain(card.encoder or "not named by the feature files"),
        width=card.width,
        scale=_scales(card),
        graph=_graph(card),
        output=_output(card),
        calibration=_calibration(card),
        fingerprint=_origin(card, "fingerprint"),
        counts=", ".join(_origin(card, f"n_{role}") for role in ("train", "val", "test")),
        refit=_refit(card),
        last=classes[-1],
        prevalence=_origin(card, "train_prevalence"),
        seed=_origin(card, "seed"),
        epoch=_origin(card, "best_epoch"),
        device=_origin(card, "device"),
        precision=_origin(card, "precision"),
        genes=card.genes or "none",
        version=card.version,
        sha256=card.weights_sha256,
        measured=_table(card, measured),
        known=_known(card),
        validation=_validation(card),
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Returns a user's name on one line, without what Markdown takes for a table, a tag or a link."""
    return "".join(f"\\{c}" if c in "\\`*_|[]<>#" else c for c in _one_line(text))


def _known(card: BundleCard) -> str:
    if card.trained_on is None:
        return "Which patients it learnt from is not recorded."
    return (
        "The patients of training and validation are in `model.json` as salted hashes: `momkd-ray predict` tells which "
        "of\nyours they are."
    )


def _origin(card: BundleCard, key: str) -> str:
    value = card.origin.get(key)
    if value is None or value == "":
        return NOT_RECORDED
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _refit(card: BundleCard) -> str:
    refit = card.origin.get("refit")
    return NOT_RECORDED if refit is None else "yes: they are among the training patients" if refit else "no"


def _validation(card: BundleCard) -> str:
    """Says what the validation patients chose, and of which model their figures are."""
    said = []
    if card.origin.get("keep", "best") == "best":  # what kept no other epoch did not record it
        also = " and the threshold" if card.threshold is not None else ""
        said.append(f"The validation patients chose the epoch{also}, so that their figures are optimistic.")
    elif card.threshold is not None:
        said.append("The validation patients chose the threshold, so that their figures at it are optimistic.")
    if card.origin.get("refit"):
        said.append("Their figures are of the model before it was trained again with them.")
    return " ".join(said)


def _scales(card: BundleCard) -> str:
    known = card.scales or ((card.magnification, card.patch_px),)
    told = [
        " ".join([*([f"{x:g}x"] if x is not None else []), *([f"{px} px"] if px is not None else [])])
        for x, px in known
        if x is not None or px is not None
    ]
    return "; ".join(told) or NOT_RECORDED


def _graph(card: BundleCard) -> str:
    if card.graph == "none":
        return "none"
    given = "the feature file's edges, or else " if card.graph == "auto" else ""
    return f"{given}the {card.neighbors} nearest patches"


def _output(card: BundleCard) -> str:
    if card.threshold is None:
        names = ", ".join(map(_plain, card.classes))
        classes = f"The probability of each class, in the order {names}; a {card.bag} is called the likeliest."
        return f"{_expected(card)}{classes}"
    positive = _plain(card.classes[-1])
    return f"The probability of {positive}; at or above {card.threshold:.4g} a {card.bag} is called {positive}."


def _expected(card: BundleCard) -> str:
    """Says how a regression's number is computed; '' of a classification."""
    if card.expected_score is None:
        return ""
    values = ", ".join(f"{value:.4g}" for value in card.expected_score.values)
    weights = ", ".join(f"{weight:.3g}" for weight in card.expected_score.weights)
    return (
        f"The number {_plain(card.label)}: the mean of {values}, the mean numbers of the training patients of each "
        f"class, weighted by the probabilities of the classes times {weights}. "
    )


def _calibration(card: BundleCard) -> str:
    """Says what the probabilities are of; nothing of it is known of bundles of earlier versions."""
    balanced, prevalence = card.origin.get("balanced"), card.origin.get("train_prevalence")
    if balanced is None:
        return "Calibration: not recorded; evaluate it on patients of your own (`momkd-ray evaluate`)."
    if not balanced:
        sampled = "every training bag was drawn once an epoch, so that probabilities are at the training prevalence"
    elif pools_components(card.model.name, card.model.pooling):
        sampled = (
            "classes were drawn equally often, but the ridge regression is fitted to every training bag once, so that "
            "probabilities are at the training prevalence"
        )
    elif isinstance(prevalence, float):
        share = prevalence / (1 - prevalence)
        sampled = (
            "classes were drawn equally often in training, as if half of all patients were of each; multiply the odds "
            f"by {share:.3g} for the training prevalence"
        )
    else:
        sampled = "classes were drawn equally often in training, as if each were as common as the others"
    brier = card.origin.get("test_brier")
    scored = f" Brier score of the test patients: {brier:.3f}." if isinstance(brier, float) else ""
    return f"Calibration: {sampled}.{scored} `momkd-ray evaluate` corrects and recalibrates."


def _measured(card: BundleCard) -> list[tuple[str, float | None, float | None]]:
    """Returns name, value on validation and value on test patients of every metric that the card has."""
    names = [key.removeprefix("test_") for key in card.origin if key.startswith("test_")]
    beside = ("brier", "auc_low", "auc_high") if len(card.classes) == 2 else ()
    names = [name for name in dict.fromkeys(["auc", *names]) if name not in beside]
    rows = [(name, _number(card, f"val_{name}"), _number(card, f"test_{name}")) for name in names]
    return [row for row in rows if row[1] is not None or row[2] is not None]


def _number(card: BundleCard, key: str) -> float | None:
    value = card.origin.get(key)
    return float(value) if isinstance(value, (int, float)) and value == value else None


def _table(card: BundleCard, measured: list[tuple[str, float | None, float | None]]) -> str:
    if not measured:
        return "Nothing is recorded."
    lines = ["| metric | validation patients | test patients (95 % interval) |", "|---|---|---|"]
    for name, validated, tested in measured:
        two = len(card.classes) == 2  # of more, `auc_low` is the AUC of a class called low
        low, high = (_number(card, f"test_{name}_{end}") if two else None for end in ("low", "high"))
        interval = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
        shown = ["" if value is None else f"{value:.3f}" for value in (validated, tested)]
        lines.append(f"| {_plain(name)} | {shown[0]} | {shown[1]}{interval} |")
    return "\n".join(lines)
