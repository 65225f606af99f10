"""One archive of an ensemble: its bundles, a model card, metadata, and an example with the expected output."""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import yaml

from momkd_ray import __version__, storage
from momkd_ray.errors import InputError
from momkd_ray.export.program import TOLERANCE, example, expected
from momkd_ray.model.bundle import BUNDLE_FILES, BundleCard, load_bundle
from momkd_ray.model.model_card import LIBRARY, PIPELINE, TAGS
from momkd_ray.predict.ensemble import mean_threshold
from momkd_ray.statistics.spread import interval_text, mean_and_sd

FORMAT = 1
MANIFEST, README, METADATA = "manifest.json", "README.md", "metadata.json"
EXAMPLE, EXPECTED = "example_input.safetensors", "expected_output.json"
EXAMPLE_PATCHES = 50
_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the same ensemble gives the same bytes
_CARD = """\
# {label}: {told} from histology

An ensemble of {n} models of type `{name}` that predicts {label} ({told}) of a {bag} from patch
features. Written by momkd-ray {version}.

## Intended use

{intended_use}

Not for other encoders, stains, magnifications or populations than those it was trained on, before it has been
evaluated there.

## Inputs

Patch features of width {width}, extracted with {encoder}, and the graph of the {neighbors} nearest patches ({graph}).

## Output

{output}

## Training

| model | cohort's fingerprint | fold | seed | training patients | validation AUC | test AUC | threshold |
|---|---|---|---|---|---|---|---|
{rows}

## Metrics

{metrics}

## Data

Licence of the training data: {data_license}.

## Use

```bash
momkd-ray import {file} --out model       # checks every file, and the example
momkd-ray predict model/models/* --features features --out predictions.csv
```
"""


@dataclass(frozen=True)
class About:
    """What the model card has from the author of a model: intended use, licences, names.

    Attributes:
        intended_use: in sentences.
        license: of the model, as a Hugging Face identifier, such as `apache-2.0`.
        data_license: of the training data.
        authors: their names.
        metrics: of a run's `metrics.json`; None if it is not given.
    """

    intended_use: str = "Research. Not for diagnosis."
    license: str = "other"
    data_license: str = "not stated"
    authors: str = "not stated"
    metrics: dict[str, Any] | None = None


def write_archive(locations: Sequence[str], cards: Sequence[BundleCard], about: About, out: str) -> None:
    """Writes bundles, card, metadata and example as one zip file.

    Args:
        locations: of the bundles.
        cards: theirs, which fit together.
        about: the author's statements.
        out: the file.
    """
    models = [load_bundle(location)[0] for location in locations]
    names = [f"models/{i:02d}" for i in range(len(locations))]
    features_PD, edges_2E = example(cards[0], EXAMPLE_PATCHES)
    p_Y = expected(models, features_PD, edges_2E)
    files = {
        f"{name}/{file}": storage.read_bytes(storage.join(location, file))
        for name, location in zip(names, locations, strict=True)
        for file in BUNDLE_FILES
    }
    files[EXAMPLE] = safetensors.numpy.save({"features": features_PD, "edges": edges_2E})
    files[EXPECTED] = _json({"probabilities": dict(zip(cards[0].classes, p_Y.tolist(), strict=True))})
    files[README] = model_card(cards, about, posixpath.basename(out)).encode()
    files[METADATA] = _json(monai_metadata(cards, about))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = _json({"format": FORMAT, "version": __version__, "models": names, "sha256": hashes})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _NO_DATE), files[name], zipfile.ZIP_DEFLATED)
    storage.write_bytes(out, stream.getvalue())


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def model_card(cards: Sequence[BundleCard], about: About, file: str) -> str:
    """Returns the model card: Markdown behind the front matter that Hugging Face reads."""
    first = cards[0]
    told = " or ".join(first.classes) if len(first.classes) == 2 else ", ".join(first.classes)
    threshold = mean_threshold(cards)
    measured = (about.metrics or {}).get("metrics", {})
    front: dict[str, Any] = {
        "library_name": LIBRARY,
        "license": about.license,
        "pipeline_tag": PIPELINE,
        "tags": [*TAGS, first.model.name],
    }
    if measured:
        results = [
            {"type": name, "value": round(float(m["mean"]), 4), "name": f"{name} (mean over folds)"}
            for name, m in measured.items()
        ]
        task = {"type": PIPELINE, "name": f"{first.label}: {told}"}
        dataset = {"type": "private", "name": str(first.origin.get("fingerprint") or "the training cohort")}
        model = {"name": f"{first.label} {first.model.name}"}
        front["metrics"] = sorted(measured)
        front["model-index"] = [{**model, "results": [{"task": task, "dataset": dataset, "metrics": results}]}]
    rows = [
        f"| {i:02d} | {_cell(c, 'fingerprint')} | {_cell(c, 'fold')} | {_cell(c, 'seed')} | {_cell(c, 'n_train')} | "
        f"{_cell(c, 'val_auc')} | {_cell(c, 'test_auc')} | {_threshold(c.threshold)} |"
        for i, c in enumerate(cards)
    ]
    body = _CARD.format(
        label=first.label,
        told=told,
        n=len(cards),
        name=first.model.name,
        bag=first.bag,
        version=__version__,
        intended_use=about.intended_use,
        width=first.width,
        encoder=first.encoder or "an encoder that the feature files do not name",
        neighbors=first.neighbors,
        graph=first.graph,
        output=_output(first, threshold),
        rows="\n".join(rows),
        metrics=_metrics(measured),
        data_license=about.data_license,
        file=file,
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _output(card: BundleCard, threshold: float | None) -> str:
    if threshold is None:
        classes = f"The probability of each class, {', '.join(card.classes)}; a {card.bag} is called the likeliest."
        if card.expected_score is None:
            return classes
        return (
            f"{classes} `momkd-ray predict` adds the number {card.label}: the mean over the models of the expectation "
            "over classes, by\n`expected_score` of each model.json."
        )
    positive = card.classes[1]
    return (
        f"The probability of {positive}; at or above {threshold:.4g} a {card.bag} is called {positive}. "
        "The threshold was\nchosen on validation patients."
    )


def _threshold(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _cell(card: BundleCard, key: str) -> str:
    value = card.origin.get(key)
    return "not recorded" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _metrics(measured: dict[str, Any]) -> str:
    if not measured:
        return "Not given: export with `--run` to state those of the cross-validation."
    lines = [
        "Of the test patients of a cross-validation:",
        "",
        "| metric | mean ± sd over folds | pooled, 95 % interval |",
    ]
    lines.append("|---|---|---|")
    for name, m in measured.items():
        lines.append(
            f"| {name} | {mean_and_sd(m['mean'], m['sd'])} | {m['pooled']:.3f}, {interval_text(m['interval'])} |"
        )
    return "\n".join(lines)


def monai_metadata(cards: Sequence[BundleCard], about: About) -> dict[str, Any]:
    """Returns the metadata under the names of MONAI's bundle specification."""
    import torch

    first = cards[0]
    features = {
        "type": "tuples",
        "format": "features",
        "num_channels": first.width,
        "spatial_shape": ["n"],
        "dtype": "float32",
        "is_patch_data": True,
    }
    probability = {
        "type": "probabilities",
        "format": "classes",
        "num_channels": len(first.classes),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": False,
        "channel_def": {str(y): name for y, name in enumerate(first.classes)},
    }
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "first"},
        "monai_version": "not used",
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"momkd-ray": __version__},
        "name": f"{first.label} {first.model.name}",
        "task": f"classification of {first.label} from whole slides",
        "description": f"An ensemble of {len(cards)} slide classifiers over patch features",
        "authors": about.authors,
        "copyright": about.license,
        "data_source": f"fingerprint {_cell(first, 'fingerprint')}, licence {about.data_license}",
        "data_type": f"patch features of {first.encoder or 'an unnamed encoder'}",
        "intended_use": about.intended_use,
        "network_data_format": {"inputs": {"image": features}, "outputs": {"pred": probability}},
    }


def read_archive(archive: str, out: str) -> list[str]:
    """Unpacks an ensemble, after every file and the example have been checked.

    Args:
        archive: the zip file.
        out: the folder to write to.

    Returns:
        The locations of the bundles.

    Raises:
        InputError: it is no archive of this package, damaged, or computes something else here.
    """
    try:
        content = storage.read_bytes(archive)
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            files = {name: packed.read(name) for name in packed.namelist()}
        manifest = json.loads(files[MANIFEST])
        names, hashes = list(manifest["models"]), dict(manifest["sha256"])
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{archive} does not exist: name a file that momkd-ray export has written") from error
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{archive} is no archive of an ensemble, or damaged: export it again") from error
    if manifest["format"] != FORMAT:
        raise InputError(f"{archive} has the format {manifest['format']}, this version of momkd-ray reads {FORMAT}")
    for name, digest in hashes.items():
        if hashlib.sha256(files.get(name, b"")).hexdigest() != digest:
            raise InputError(f"{archive} is damaged: {name} is missing or another than was written; export it again")
    # only files that the manifest lists, by plain names, are written
    for name in hashes:
        if posixpath.isabs(name) or ".." in name.split("/") or "\\" in name:
            raise InputError(f"{archive} names a file {name!r} outside its folder: it is not to be trusted")
    for name in (*sorted(hashes), MANIFEST):
        storage.write_bytes(storage.join(out, name), files[name])
    locations = [storage.join(out, name) for name in names]
    loaded = [load_bundle(location) for location in locations]
    arrays = safetensors.numpy.load(files[EXAMPLE])
    p_Y = expected([model for model, _ in loaded], arrays["features"], arrays["edges"])
    stated = json.loads(files[EXPECTED])["probabilities"]
    worst = float(np.abs(p_Y - np.array([stated[name] for name in loaded[0][1].classes])).max())
    if not worst <= TOLERANCE:
        raise InputError(
            f"{archive}: its example gives probabilities that differ by {worst:.2g} here from those where it was "
            "written; use the momkd-ray version of its manifest.json"
        )
    return locations
