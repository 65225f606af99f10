from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from momkd_ray.cohort.cohort import Cohort, load_cohort
from momkd_ray.config.load import Config
from momkd_ray.config.sections import SyntheticConfig
from momkd_ray.errors import InputError
from momkd_ray.synthetic.cohort import OTHER_LABELS, generate_cohort


def settings(folder: Path, **changes: int) -> SyntheticConfig:
    sizes = {"patients": 12, "patches": 20, "width": 8, "genes": 12, "seed": 3} | changes
    return SyntheticConfig(dir=str(folder), **sizes)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cohort_in(folder: Path) -> Cohort:
    return load_cohort(
        Config.model_validate(
            {
                "cohort": {
                    "clinical": str(folder / "clinical.csv"),
                    "slides": str(folder / "slides.csv"),
                    "omics": str(folder / "rna.parquet"),
                    "label": "LABEL",
                },
                "features": {"dir": str(folder / "features")},
            }
        )
    )


def test_same_settings_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate_cohort(settings(tmp_path / name, seed=seed))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a").keys() != digests(tmp_path / "c").keys()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b", "c"]  # no temporary folder left


def test_a_complete_cohort_is_left_alone(tmp_path: Path) -> None:
    generate_cohort(settings(tmp_path / "a"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    generate_cohort(settings(tmp_path / "a"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_settings_or_other_files_in_the_folder_are_refused(tmp_path: Path) -> None:
    generate_cohort(settings(tmp_path / "a"))
    with pytest.raises(InputError, match="another 'patches'"):
        generate_cohort(settings(tmp_path / "a", patches=21))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("irreplaceable")
    with pytest.raises(InputError, match="no generated cohort"):
        generate_cohort(settings(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.doc"]
    with pytest.raises(InputError, match="is a file"):
        generate_cohort(settings(tmp_path / "mine" / "thesis.doc"))
    with pytest.raises(InputError, match="local folder"):
        generate_cohort(SyntheticConfig(dir="s3://bucket/cohort"))


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("momkd_ray.synthetic.cohort._write_slide", broken)
    with pytest.raises(KeyboardInterrupt):
        generate_cohort(settings(tmp_path / "a"))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    generate_cohort(settings(tmp_path / "a"))
    assert (tmp_path / "a" / "synthetic.json").exists()


def test_files_are_in_the_users_formats(tiny_cohort_dir: Path) -> None:
    slides = pd.read_csv(tiny_cohort_dir / "slides.csv")
    assert sorted(slides["FILENAME"]) == sorted(path.name for path in (tiny_cohort_dir / "features").iterdir())
    for name in slides["FILENAME"]:
        with h5py.File(tiny_cohort_dir / "features" / name) as file:
            features, coords = file["features"], file["coords"]
            patches, width = features.shape
            assert (features.dtype, coords.dtype) == (np.float32, np.int64)
            assert width == 16
            assert features.chunks == (1, width)
            assert features.attrs["encoder"] == "synthetic"
            attributes = {"patch_size": 256, "patch_size_level0": 512}
            attributes |= {"level0_magnification": 40, "target_magnification": 20}
            assert {key: int(coords.attrs[key]) for key in attributes} == attributes
            coords_P2 = coords[:]
        assert coords_P2.shape == (patches, 2)
        assert (coords_P2 % 512 == 0).all()
        assert len(np.unique(coords_P2, axis=0)) == patches
        assert (np.lexsort((coords_P2[:, 0], coords_P2[:, 1])) == np.arange(patches)).all()  # scan order
    omics = pd.read_parquet(tiny_cohort_dir / "rna.parquet").set_index("PATIENT").to_numpy()
    assert omics.min() >= 0
    assert omics.max() > 50  # so that it is taken as counts


def test_the_cohort_has_every_kind_of_patient(tiny_cohort_dir: Path) -> None:
    cohort = cohort_in(tiny_cohort_dir)
    assert len(cohort.patients) == 24
    assert cohort.patients["y"].mean() == pytest.approx(0.45, abs=0.05)
    assert cohort.slides["patient_id"].duplicated().any()
    assert cohort.omics is not None
    assert 0 < len(cohort.omics) < 24
    left_out = cohort.excluded[cohort.excluded["kind"] == "patient"]
    assert len(left_out) == len(OTHER_LABELS)
    assert left_out["reason"].nunique() == 2


def auc(values_ND: np.ndarray, y_N: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(roc_auc_score(y_N, cross_val_predict(model, values_ND, y_N, cv=folds, method="decision_function")))


def test_the_signal_is_strong_in_omics_middling_in_its_region_and_weak_in_the_mean(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    generate_cohort(SyntheticConfig(dir=str(folder), patients=120, patches=60, width=64, genes=200, seed=7))
    cohort = cohort_in(folder)
    assert cohort.omics is not None
    y = cohort.patients["y"]
    regions = pd.read_parquet(folder / "regions.parquet").groupby("slide_id")["inside"]
    whole, region = [], []
    first = cohort.slides.drop_duplicates("patient_id").set_index("patient_id").loc[y.index]
    for slide, path in zip(first["slide_id"], first["path"], strict=True):
        inside_P = regions.get_group(slide).to_numpy()
        assert inside_P.mean() == pytest.approx(0.2, abs=0.06)
        with h5py.File(path) as file:
            features_PD = file["features"][:]
        whole.append(features_PD.mean(axis=0))
        region.append(features_PD[inside_P].mean(axis=0))
    omics_auc = auc(np.log2(cohort.omics.to_numpy() + 1), y[cohort.omics.index].to_numpy())
    region_auc, whole_auc = auc(np.array(region), y.to_numpy()), auc(np.array(whole), y.to_numpy())
    assert omics_auc > 0.9
    assert 0.75 < region_auc < 0.97
    assert 0.5 < whole_auc < region_auc - 0.05
