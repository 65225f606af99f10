"""Generates cohorts in the users' file formats, with one signal in the omics and in the histology.

Each patient has a latent variable t, and the label is t > 0 or, of several classes, a grade of t; a score rises with t.
A tenth of the genes depend on t strongly. The histology depends on it weakly: features shift with t only in a
contiguous region of a fifth of the patches, which has an offset of its own; the other patches vary along the same
directions independently of t.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from momkd_ray.config.sections import SyntheticConfig
from momkd_ray.errors import InputError

MARKER = "synthetic.json"
FORMAT = 1  # incremented when the same settings would give another cohort
POSITIVE_SHARE = 0.45
OTHER_LABELS = (
    "Equivocal",
    "Equivocal",
    "",
    "",
)  # patients with these labels must be excluded, never taken as negative
WITHOUT_OMICS = 0.15
WITH_TWO_SLIDES = 0.15
PATCH_LEVEL0 = 512  # level-0 pixels a patch covers: 256 at 20x on a 40x slide

GENES_WITH_SIGNAL = 0.1
GENE_SIGNAL = 1.5  # log2 units per unit of t, before a factor of 0.5 to 1 per gene
GENE_NOISE = 0.7

REGION_SHARE = 0.2
REGION_OFFSET = 3.0  # along the region's direction, in standard deviations of a patch's noise
SIGNAL_DIRECTIONS = 3
SIGNAL = 2.0  # along each signal direction per unit of t, inside the region
SIGNAL_NOISE = 0.7  # standard deviation of the noise on the patient's t in the region
OUTSIDE_NUISANCE = 1.0  # standard deviation per patient, outside the region, along the signal directions
NUISANCE_DIRECTIONS = 5
NUISANCE = 2.0  # standard deviation per patient and direction, of the entire slide (stain, scanner)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Directions:
    """Unit vectors in feature space, the same for every slide."""

    signal: Floats  # (3, D)
    nuisance: Floats  # (5, D)
    region: Floats  # (D,)


def generate_cohort(settings: SyntheticConfig) -> None:
    """Writes a cohort into `settings.dir`; does nothing if the same cohort is already complete there.

    It has `clinical.csv` (PATIENT, LABEL and, if asked for, SCORE), `slides.csv` (PATIENT, FILENAME), `rna.parquet`
    (PATIENT and genes, as TPM), `features/<slide>.h5` in TRIDENT's layout, and `regions.parquet` (slide_id, patch,
    inside): the patches with signal, which training never reads.

    Raises:
        InputError: the folder holds another cohort or anything else, is not local, or cannot be created.
    """
    folder = settings.dir
    if "://" in folder:
        raise InputError(f"synthetic.dir is {folder}: a cohort is generated in a local folder only")
    record = _record(settings)
    if _already_there(folder, record):
        return
    parent = os.path.dirname(folder)
    try:
        os.makedirs(parent, exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=f".{os.path.basename(folder)}.", suffix=".tmp", dir=parent)
    except OSError as error:
        raise InputError(f"synthetic.dir: cannot write in {parent}: {error.strerror}") from error
    try:
        os.chmod(temporary, 0o755)  # mkdtemp gives access to the owner only
        _write(temporary, settings)
        with open(os.path.join(temporary, MARKER), "w") as stream:
            json.dump(record, stream, indent=2)
        _take_place(temporary, folder, record)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _record(settings: SyntheticConfig) -> dict[str, object]:
    record = {"format": FORMAT} | settings.model_dump(mode="json", exclude={"dir"})
    if settings.classes == 2:  # cohorts from before there was a choice stay valid
        del record["classes"]
    if not settings.score:
        del record["score"]
    return record


def class_names(classes: int) -> tuple[str, ...]:
    """Returns the labels of a generated cohort, in the order of the latent variable."""
    return ("negative", "positive") if classes == 2 else tuple(f"grade {y + 1}" for y in range(classes))


def _labels(t_N: Floats, classes: int) -> list[str]:
    """Labels patients by t: positive above 0 or, of several classes, equally many of each grade."""
    names = class_names(classes)
    limits = [0.0] if classes == 2 else np.quantile(t_N, np.arange(1, classes) / classes)
    return [names[y] for y in np.searchsorted(limits, t_N)]


def _already_there(folder: str, record: dict[str, object]) -> bool:
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise InputError(f"synthetic.dir {folder} is a file: give a folder")
    if not os.path.isdir(folder) or not os.listdir(folder):
        return False
    try:
        with open(os.path.join(folder, MARKER)) as stream:
            found = json.load(stream)
    except (OSError, ValueError):
        raise InputError(
            f"{folder} holds files that are no generated cohort: give synthetic.dir another folder"
        ) from None
    if found != record:
        changed = next(
            (key for key in record if not isinstance(found, dict) or found.get(key) != record[key]), "format"
        )
        raise InputError(
            f"{folder} holds a generated cohort with another '{changed}': "
            "remove it or give synthetic.dir another folder"
        )
    return True


def _take_place(temporary: str, folder: str, record: dict[str, object]) -> None:
    try:
        os.rename(temporary, folder)
    except OSError:  # another process was first
        if not _already_there(folder, record):
            raise


def _write(folder: str, settings: SyntheticConfig) -> None:
    """Writes all files; each part has its own random stream, so a changed setting leaves the other parts unchanged."""
    seeds = np.random.SeedSequence(settings.seed).spawn(5)
    who_rng, omics_rng, direction_rng, slide_rng = (np.random.default_rng(seed) for seed in seeds[:4])
    t_N = _latent(settings.patients, who_rng)
    patients = [f"TCGA-{'ABCDEFGH'[i % 8]}{i % 9 + 1}-{_code(who_rng)}{i:03d}" for i in range(len(t_N))]
    labels = _labels(t_N[: settings.patients], settings.classes)
    clinical = pd.DataFrame({"PATIENT": patients, "LABEL": [*labels, *OTHER_LABELS]})
    if settings.score:
        clinical["SCORE"] = [f"{score:.1f}" for score in 100 / (1 + np.exp(-t_N[: len(labels)]))] + [""] * len(
            OTHER_LABELS
        )
    clinical.to_csv(os.path.join(folder, "clinical.csv"), index=False)
    _omics(patients, t_N, settings.genes, omics_rng).to_parquet(os.path.join(folder, "rna.parquet"), index=False)

    os.mkdir(os.path.join(folder, "features"))
    directions = _directions(settings.width, direction_rng)
    owners = _owners(len(t_N), slide_rng)
    shown_N = t_N + SIGNAL_NOISE * slide_rng.normal(size=len(t_N))
    nuisance_NK = slide_rng.normal(size=(len(t_N), NUISANCE_DIRECTIONS + SIGNAL_DIRECTIONS))
    slides, regions = [], []
    for (owner, number), seed in zip(owners, seeds[4].spawn(len(owners)), strict=True):
        rng = np.random.default_rng(seed)
        name = f"{patients[owner]}-01Z-00-DX{number}.{str(uuid.UUID(bytes=rng.bytes(16), version=4)).upper()}"
        coords_P2 = _tissue(max(4, round(settings.patches * rng.uniform(0.3, 1.7))), rng)
        inside_P = _region(coords_P2, rng)
        features_PD = _features(inside_P, shown_N[owner], nuisance_NK[owner], directions, rng)
        _write_slide(os.path.join(folder, "features", f"{name}.h5"), name, features_PD, coords_P2)
        slides.append((patients[owner], f"{name}.h5"))
        regions.append(pd.DataFrame({"slide_id": name, "patch": np.arange(len(inside_P)), "inside": inside_P}))
    pd.DataFrame(slides, columns=["PATIENT", "FILENAME"]).to_csv(os.path.join(folder, "slides.csv"), index=False)
    pd.concat(regions).to_parquet(os.path.join(folder, "regions.parquet"), index=False)


def _latent(patients: int, rng: np.random.Generator) -> Floats:
    """Draws t of the labelled patients, `POSITIVE_SHARE` of them above 0, and of those with another label."""
    t_N = rng.normal(size=patients)
    t_N -= np.quantile(t_N, 1 - POSITIVE_SHARE)
    return np.concatenate([t_N, np.zeros(len(OTHER_LABELS))])


def _code(rng: np.random.Generator) -> str:
    return "ABCDEFGHJKLMNPQRSTUVWXYZ"[rng.integers(24)]


def _owners(patients: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Draws (patient, number of the slide) of every slide."""
    twice = set(rng.choice(patients, round(WITH_TWO_SLIDES * patients), replace=False).tolist())
    return [(patient, number) for patient in range(patients) for number in range(1, 3 if patient in twice else 2)]


def _omics(patients: list[str], t_N: Floats, genes: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draws TPM-like values >= 0 of most patients; log2(x + 1) is the sum of gene level, programmes, noise and t."""
    count = max(1, round(GENES_WITH_SIGNAL * genes))
    loading_G = np.zeros(genes)
    carriers = rng.choice(genes, count, replace=False)
    loading_G[carriers] = GENE_SIGNAL * rng.choice([-1, 1], count) * rng.uniform(0.5, 1, count)
    programmes_NK = rng.normal(size=(len(t_N), 4))
    log_NG = rng.normal(5, 1.5, genes) + GENE_NOISE * rng.normal(size=(len(t_N), genes))
    log_NG += t_N[:, None] * loading_G + programmes_NK @ rng.normal(0, 0.3, (4, genes))
    tpm_NG = np.exp2(np.clip(log_NG, 0, 16)) - 1
    frame = pd.DataFrame(tpm_NG.round(3), columns=[f"GENE{gene:04d}" for gene in range(genes)])
    frame.insert(0, "PATIENT", patients)
    without = rng.choice(len(patients), round(WITHOUT_OMICS * len(patients)), replace=False)
    kept: pd.DataFrame = frame.drop(index=without.tolist())
    return kept


def _directions(width: int, rng: np.random.Generator) -> _Directions:
    vectors = rng.normal(size=(SIGNAL_DIRECTIONS + NUISANCE_DIRECTIONS + 1, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return _Directions(vectors[:SIGNAL_DIRECTIONS], vectors[SIGNAL_DIRECTIONS:-1], vectors[-1])


def _tissue(patches: int, rng: np.random.Generator) -> Integers:
    """Draws coordinates (P, 2) in level-0 pixels, x then y, of an irregular tissue, in scan order."""
    side = int(np.ceil(np.sqrt(patches) * 1.8)) + 2
    y_C, x_C = (axis.ravel() for axis in np.indices((side, side)))
    away_C = np.hypot(x_C - side / 2, (y_C - side / 2) * rng.uniform(0.8, 1.3)) / side
    angle_C = np.arctan2(y_C - side / 2, x_C - side / 2)
    for lobes in (2, 3, 5):
        away_C += rng.uniform(0, 0.08) * np.sin(lobes * angle_C + rng.uniform(0, 2 * np.pi))
    cells = np.sort(np.argsort(away_C, kind="stable")[:patches])
    origin_2 = rng.integers(4, 40, size=2)
    return np.asarray((np.stack([x_C[cells], y_C[cells]], axis=1) + origin_2) * PATCH_LEVEL0, np.int64)


def _region(coords_P2: Integers, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Selects the `REGION_SHARE` of the patches that are nearest to a random patch."""
    centre_2 = coords_P2[rng.integers(len(coords_P2))]
    nearest = np.argsort(np.linalg.norm(coords_P2 - centre_2, axis=1), kind="stable")
    inside_P = np.zeros(len(coords_P2), dtype=np.bool_)
    inside_P[nearest[: max(1, round(REGION_SHARE * len(coords_P2)))]] = True
    return inside_P


def _features(
    inside_P: npt.NDArray[np.bool_],
    shown: float,
    nuisance_K: Floats,
    directions: _Directions,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Draws features (P, D): unit noise, the slide's nuisance, and in the region its offset and the signal."""
    features_PD = rng.normal(size=(len(inside_P), directions.region.size))
    features_PD += NUISANCE * nuisance_K[:NUISANCE_DIRECTIONS] @ directions.nuisance
    region_D = REGION_OFFSET * directions.region + SIGNAL * shown * directions.signal.sum(axis=0)
    outside_D = OUTSIDE_NUISANCE * nuisance_K[NUISANCE_DIRECTIONS:] @ directions.signal
    features_PD += np.where(inside_P[:, None], region_D, outside_D)
    return features_PD.astype(np.float32)


def _write_slide(path: str, name: str, features_PD: npt.NDArray[np.float32], coords_P2: Integers) -> None:
    width, height = (int(edge) for edge in coords_P2.max(axis=0) + 4 * PATCH_LEVEL0)
    with h5py.File(path, "w") as file:
        # one chunk per patch and an unlimited first axis, as TRIDENT writes
        features = file.create_dataset(
            "features",
            data=features_PD,
            chunks=(1, features_PD.shape[1]),
            maxshape=(None, features_PD.shape[1]),
        )
        features.attrs.update({"name": name, "encoder": "synthetic"})
        coords = file.create_dataset("coords", data=coords_P2, chunks=(1, 2), maxshape=(None, 2))
        coords.attrs.update(
            {
                "name": name,
                "patch_size": 256,
                "patch_size_level0": PATCH_LEVEL0,
                "level0_magnification": 40,
                "target_magnification": 20,
                "overlap": 0,
                "level0_width": width,
                "level0_height": height,
            }
        )
