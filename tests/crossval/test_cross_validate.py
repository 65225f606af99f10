"""Folds as Ray Tune trials: the whole way on a tiny cohort, and going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import pytest
from support.runs import changed, crossval, inputs_of

from momkd_ray import storage
from momkd_ray.bags.bag_rows import rows_table
from momkd_ray.bags.shared_bags import SharedBags, share_bags
from momkd_ray.config.load import Config
from momkd_ray.crossval.cross_validate import choose_settings, cross_validate_inputs, train_folds
from momkd_ray.crossval.early_checks import check_training_bags
from momkd_ray.errors import InputError, input_error_within
from momkd_ray.model.bundle import load_bundle
from momkd_ray.predict.ensemble import check_ensemble, predict_folder
from momkd_ray.progress import ProgressReporter
from momkd_ray.ray_runtime.cluster import Connection, concurrent_folds
from momkd_ray.report.page import write_report
from momkd_ray.run.prepare import open_cohort
from momkd_ray.run.provenance import fingerprint
from momkd_ray.statistics.spread import metrics_table


def test_the_whole_way_gives_every_patient_one_prediction_and_goes_on_where_it_stopped(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tune would import MLflow and W&B to count trackers for the authors of Ray, to whom nothing is sent
    monkeypatch.delattr("ray.air._internal.usage._count_callbacks")
    metrics = crossval(tiny_config)
    run = Path(tiny_config.run.dir)
    inputs = inputs_of(tiny_config)

    pooled = pd.read_parquet(run / "predictions.parquet")
    assert pooled["patient_id"].tolist() == sorted(inputs.cohort.patients.index)
    assert (pooled.set_index("patient_id")["fold"] == inputs.plan.table["fold"].sort_index()).all()
    assert set(pooled["predicted"]) <= {"positive", "negative"}
    assert metrics == storage.read_json(str(run / "metrics.json"))
    assert len(metrics["metrics"]["auc"]["folds"]) == 2
    for fold in (0, 1):
        lines = (run / f"fold={fold}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
        model, card = load_bundle(str(run / f"fold={fold}" / "model"))
        assert (model.genes, card.classes) == (10, ("negative", "positive"))
    assert Path(write_report(str(run))).read_text().startswith("<!")
    assert not [p for p in run.rglob("*.tmp") if "tune" not in p.parts]

    stamps = {p: p.stat().st_mtime_ns for p in run.glob("fold=*/*.*")}
    (run / "metrics.json").unlink()
    assert crossval(tiny_config) == metrics
    assert stamps == {p: p.stat().st_mtime_ns for p in run.glob("fold=*/*.*")}

    with pytest.raises(InputError, match="another configuration"):
        crossval(changed(tiny_config, train__lr=0.1))
    other = tmp_path / "other"
    shutil.copytree(tiny_config.features.dir, other, copy_function=shutil.copy)
    parts = sorted((run / "bags").iterdir())
    stamps = {p: p.stat().st_mtime_ns for p in run.glob("fold=*/*.*")}
    assert crossval(changed(tiny_config, features__dir=str(other))) == metrics, "copied features are the same"
    assert stamps == {p: p.stat().st_mtime_ns for p in run.glob("fold=*/*.*")}
    with h5py.File(next(other.iterdir()), "r+") as file:
        file["features"][0, 0] += 1
    with pytest.raises(InputError, match="other slides or feature files"):
        crossval(changed(tiny_config, features__dir=str(other)))
    with pytest.raises(InputError, match="does not exist"):
        crossval(changed(tiny_config, features__dir=str(tmp_path / "nowhere"), run__dir=str(tmp_path / "new")))
    assert sorted((run / "bags").iterdir()) == parts

    # the same slides, features alone: the fold's own model gives what the fold's test said, up to float16
    slides = pd.read_parquet(run / "fold=0" / "test_slides.parquet")
    predicted = predict_folder(
        [str(run / "fold=0" / "model")],
        tiny_config.features.dir,
        str(tmp_path / "p.csv"),
        ProgressReporter(),
        slides=tiny_config.cohort.slides,
        gpus=0,
    )
    both = slides.merge(predicted, on="slide_id", suffixes=("", "_again"))
    assert len(both) == len(slides) < len(predicted)
    assert (both["p_positive"] - both["p_positive_again"]).abs().max() < 2e-3
    assert (both["patient_id"] == both["patient_id_again"]).all()
    assert set(pd.read_csv(tmp_path / "p.csv")["slide_id"]) == set(predicted["slide_id"])


def test_what_becomes_of_a_store_that_is_there_is_told(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = {"store__uri": str(tmp_path / "bags")}
    slides = inputs_of(changed(tiny_config, **store)).cohort.slides["slide_id"].tolist()
    assert f"{tmp_path / 'bags'} has all" not in capsys.readouterr().err
    inputs_of(changed(tiny_config, run__dir=str(tmp_path / "second"), **store))
    assert f"{tmp_path / 'bags'} has all {len(slides)} bags already\n" in capsys.readouterr().err
    gone = changed(tiny_config, run__dir=str(tmp_path / "third"), features__dir=str(tmp_path / "gone"), **store)
    inputs_of(gone)
    assert f"bags already; {len(slides)} have no feature file in {tmp_path / 'gone'}" in capsys.readouterr().err

    other = tmp_path / "other"
    shutil.copytree(tiny_config.features.dir, other)
    for slide_id in slides[:3]:
        os.utime(other / f"{slide_id}.h5", ns=(1, 1))
    with h5py.File(other / f"{slides[0]}.h5", "r+") as file:
        file["features"][0, 0] += 1
    inputs_of(changed(tiny_config, run__dir=str(tmp_path / "fourth"), features__dir=str(other), **store))
    told = capsys.readouterr().err
    assert "3 feature files have changed since they were stored" in told
    assert "2 of them have the same content as before" in told
    assert "1 bags of the store were made from other files and are replaced" in told


@pytest.mark.slow
def test_a_split_that_tests_patients_several_times_or_never_is_run_as_it_is(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path
) -> None:
    y = open_cohort(tiny_config, ProgressReporter()).patients["y"]
    positive, negative = (y.index[y == value].tolist() for value in (1, 0))
    tested = [*positive[:3], *negative[:3]]
    splits = [
        {"test_patients": tested, "train_patients": ["stranger", *sorted({*y.index} - {*tested})]},
        {"test_patients": tested[1:], "train_patients": [*positive[4:], *negative[3:]]},
    ]
    (tmp_path / "splits.json").write_text(json.dumps({"splits": splits}))
    config = changed(tiny_config, folds__file=str(tmp_path / "splits.json"))
    inputs = inputs_of(config)
    assert set(inputs.fold_bags(1)["patient_id"]) == {*y.index} - {positive[0], positive[3]}
    assert set(inputs.fold_bags(1)["role"]) == {"train", "val", "test"}

    metrics = cross_validate_inputs(inputs, ProgressReporter(), own_cluster=True)
    predictions = pd.read_parquet(Path(config.run.dir) / "predictions.parquet")
    assert sorted(predictions["patient_id"]) == sorted([*tested, *tested[1:]])
    assert metrics["counts"]["patients"] == len(tested)
    assert [fold["n_test"] for fold in metrics["folds"]] == [6, 5]
    assert (Path(config.run.dir) / "folds.csv").read_text().splitlines()[0] == "PATIENT,role_0,role_1"
    page = Path(write_report(config.run.dir)).read_text()
    assert "each counts once" in page
    excluded = pd.read_csv(Path(config.run.dir) / "excluded.csv")
    untested = excluded[excluded["reason"] == "in no test set of the split"]
    assert sorted(untested["id"]) == sorted({*y.index} - {*tested})
    assert excluded[excluded["reason"] == "named by the split, not in the cohort"]["id"].tolist() == ["stranger"]
    assert f"{len(untested)} patients (in no test set of the split): " in page
    assert "1 patient left out (named by the split, not in the cohort): stranger." in page


@pytest.mark.slow
def test_a_search_chooses_each_fold_on_its_own_validation_patients(
    tiny_config: Config, ray_cluster: Connection
) -> None:
    config = tiny_config.model_copy(update={"search": {"train.lr": [1e-5, 1e-2], "genes.n": [7]}})
    metrics = crossval(config)
    inputs = inputs_of(config)
    chosen = choose_settings(inputs)
    for fold, setting in chosen.items():
        aucs = [metrics["search"]["scores"][s][inputs.plan.folds.index(fold)] for s in (0, 1)]
        assert aucs[setting] == max(aucs)
        adopted = Path(config.run.dir) / f"fold={fold}" / "result.json"
        assert len(pd.read_csv(adopted.parent / "genes.csv")) == 7
        assert adopted.read_text() == (Path(inputs.fold_directory(fold, setting).location) / "result.json").read_text()


@pytest.mark.parametrize("block_bytes", [2**26, 2**13], ids=["one block", "several blocks"])
def test_shared_bags_are_those_of_the_store(
    tiny_config: Config, ray_cluster: Connection, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr("momkd_ray.bags.shared_bags.BLOCK_BYTES", block_bytes)
    store = inputs_of(tiny_config).store
    ids = store.slides.index.tolist()
    shared = share_bags(store, ids)
    assert isinstance(shared, SharedBags)
    for slide_id in ids:
        ours, theirs = shared.read(slide_id), store.read(slide_id)
        for name in ("features", "coords", "edge_indptr", "edge_indices"):
            assert (getattr(ours, name) == getattr(theirs, name)).all()
    with pytest.raises(InputError, match="unknown-slide"):
        shared.read("unknown-slide")


def test_a_bag_that_the_object_store_has_lost_is_read_from_the_store(
    tiny_config: Config, ray_cluster: Connection
) -> None:
    import ray

    store = inputs_of(tiny_config).store
    ids = store.slides.index.tolist()[:3]

    class Owner:
        def put(self) -> list[Any]:
            return [ray.put(rows_table([store.read_row(slide_id) for slide_id in ids]))]

    owner = ray.remote(num_cpus=0)(Owner).remote()
    blocks = ray.get(owner.put.remote())
    shared = SharedBags(store, blocks, {slide_id: (0, row) for row, slide_id in enumerate(ids)})
    ray.kill(owner)  # what it put goes with it, in a while

    def lost() -> bool:
        try:
            return not ray.get(blocks)
        except ray.exceptions.ObjectLostError:
            return True

    deadline = time.monotonic() + 60
    while not lost():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for slide_id in ids:
        assert (shared.read(slide_id).features == store.read(slide_id).features).all()
    assert not shared._opened_blocks


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_a_fixed_split_is_one_fold_without_a_standard_deviation(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path
) -> None:
    patients = open_cohort(tiny_config, ProgressReporter()).patients
    parts = patients.assign(split=["train"] * len(patients))
    for value in parts["y"].unique():
        own = parts.index[parts["y"] == value]
        parts.loc[own[:2], "split"], parts.loc[own[2:6], "split"] = "val", "test"
    parts[["split"]].rename_axis("PATIENT").to_csv(tmp_path / "split.csv")
    metrics = crossval(
        changed(tiny_config, folds__file=str(tmp_path / "split.csv"), folds__column="split", train__epochs=1)
    )
    assert metrics["counts"]["patients"] == (parts["split"] == "test").sum() == 8
    assert metrics["metrics"]["auc"]["sd"] is None and len(metrics["metrics"]["auc"]["folds"]) == 1
    assert "±" not in metrics_table(metrics["metrics"]) and "nan" not in metrics_table(metrics["metrics"])
    report = Path(write_report(tiny_config.run.dir)).read_text()
    value = f"{metrics['metrics']['auc']['mean']:.3f}"
    assert f"<td>{value}</td>" in report and "nan" not in report.lower().replace("nano", "")


@pytest.mark.slow
def test_all_slides_of_a_patient_may_be_one_bag(tiny_config: Config, ray_cluster: Connection, tmp_path: Path) -> None:
    config = changed(tiny_config, cohort__bag="patient", train__epochs=1)
    crossval(config)
    inputs, run = inputs_of(config), Path(config.run.dir)
    bags = inputs.fold_bags(0)
    assert bags["bag_id"].tolist() == bags["patient_id"].tolist() == sorted(inputs.cohort.patients.index)
    assert bags["patches"].sum() == inputs.store.slides["n_patches"].sum()
    tested = pd.read_parquet(run / "fold=0" / "test_slides.parquet").set_index("patient_id")
    owners = inputs.cohort.slides.groupby("patient_id")["slide_id"].agg(sorted)
    assert {p: row.split(", ") for p, row in tested["slide_id"].items()} == owners[tested.index].to_dict()
    predicted = predict_folder(
        [str(run / "fold=0" / "model")],
        config.features.dir,
        str(tmp_path / "p.csv"),
        ProgressReporter(),
        slides=str(config.cohort.slides),
        gpus=0,
    ).set_index("patient_id")
    assert (predicted["p_positive"][tested.index] - tested["p_positive"]).abs().max() < 2e-3
    assert len(predicted) > len(owners), "also of patients who have no label"


@pytest.mark.slow
def test_features_without_coordinates_train_without_a_graph(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path
) -> None:
    import h5py
    import torch

    folder = tmp_path / "clam" / "pt_files"
    folder.mkdir(parents=True)
    for path in Path(tiny_config.features.dir).iterdir():
        with h5py.File(path) as file:
            torch.save(torch.from_numpy(file["features"][()]), folder / f"{path.stem}.pt")
    config = changed(tiny_config, features__dir=str(folder.parent), train__epochs=1)
    with pytest.raises(InputError, match=r"has no 'coords'.*features\.graph to none"):
        crossval(config)
    config = changed(config, features__graph="none", run__dir=str(tmp_path / "none"))
    crossval(config)
    store = inputs_of(config).store
    assert all(store.read(slide_id).edge_indices.size == 0 for slide_id in store.entries)
    with pytest.raises(InputError, match="no graph"):
        inputs_of(changed(tiny_config, store__uri=store.uri, run__dir=str(tmp_path / "other")))
    run = Path(config.run.dir)
    predicted = predict_folder(
        [str(run / "fold=1" / "model")], str(folder), str(tmp_path / "p.csv"), ProgressReporter(), slides=None, gpus=0
    ).set_index("slide_id")
    tested = pd.read_parquet(run / "fold=1" / "test_slides.parquet").set_index("slide_id")
    assert (predicted["p_positive"][tested.index] - tested["p_positive"]).abs().max() < 2e-3


def test_the_fingerprint_knows_which_slide_has_which_features(tiny_config: Config, ray_cluster: Connection) -> None:
    inputs = inputs_of(tiny_config)
    table = inputs.store.slides
    assert inputs_of(tiny_config).fingerprint == inputs.fingerprint
    a, b = inputs.cohort.slides["slide_id"].iloc[:2]
    table.loc[[a, b], "sha256"] = table.loc[[b, a], "sha256"].to_numpy()
    assert fingerprint(tiny_config, inputs.cohort, inputs.plan, inputs.store) != inputs.fingerprint


def test_a_fold_whose_training_patients_have_no_omics_is_refused(tiny_config: Config, ray_cluster: Connection) -> None:
    inputs = inputs_of(tiny_config)
    roles = inputs.plan.roles(0)
    untaught = inputs.cohort.omics[inputs.cohort.omics.index.map(roles) != "train"]
    inputs = replace(inputs, cohort=replace(inputs.cohort, omics=untaught))
    with pytest.raises(InputError, match=r"^fold 0 trains on no patient of class 'negative' or 'positive' that"):
        check_training_bags(inputs, [{}], [0])


def test_bad_input_is_found_inside_what_ray_train_raises() -> None:
    from ray.train import WorkerGroupError

    error = WorkerGroupError("a worker failed", {0: InputError("slide s is damaged")})
    assert input_error_within(RuntimeError("other")) is None
    assert str(input_error_within(error)) == "slide s is damaged"


def test_a_machine_too_small_for_one_fold_is_told_so(tiny_config: Config, ray_cluster: Connection) -> None:
    cluster = changed(tiny_config, cluster__workers=64).cluster
    with pytest.raises(InputError, match="64 CPUs"):
        concurrent_folds(cluster, own=True)
    assert concurrent_folds(cluster, own=False) == 1


def test_bad_input_found_by_a_fold_is_an_input_error(tiny_config: Config, ray_cluster: Connection) -> None:
    with pytest.raises(InputError, match=r"memory\.components"):
        crossval(changed(tiny_config, memory__components=100_000))


def test_bad_feature_files_are_all_listed(tiny_config: Config, ray_cluster: Connection, tmp_path: Path) -> None:
    import h5py

    features = tmp_path / "features"
    shutil.copytree(tiny_config.features.dir, features)
    cohort_slides = open_cohort(tiny_config, ProgressReporter()).slides["slide_id"]
    first, second = (features / f"{slide_id}.h5" for slide_id in cohort_slides[:2])
    first.write_bytes(b"not HDF5")
    with h5py.File(second, "r+") as file:
        file["features"][3, 2] = float("nan")
    config = changed(tiny_config, features__dir=str(features))
    with pytest.raises(InputError, match=r"2 of .*rejected\.csv"):
        crossval(config)
    first.unlink()
    with pytest.raises(InputError, match=r"2 of .*no feature file.*rejected\.csv"):
        crossval(config)
    shutil.copy(Path(tiny_config.features.dir) / first.name, first)
    with pytest.raises(InputError, match="NaN"):
        crossval(config)
    listed = pd.read_csv(f"{config.store_uri}/rejected.csv")
    assert listed[["kind", "id", "problem"]].to_numpy().tolist() == [["slide", second.stem, "not finite"]]


@pytest.mark.slow
def test_models_of_different_features_do_not_predict_together(
    tiny_config: Config, ray_cluster: Connection, tmp_path: Path
) -> None:
    from support.models import card_of, small_model

    from momkd_ray.model.bundle import save_bundle

    model = small_model()
    save_bundle(str(tmp_path / "a"), model, card_of(model))
    save_bundle(str(tmp_path / "b"), model, card_of(model).model_copy(update={"neighbors": 4}))
    with pytest.raises(InputError, match="neighbors"):
        check_ensemble([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(InputError, match="width"):
        predict_folder(
            [str(tmp_path / "a")],
            tiny_config.features.dir,
            str(tmp_path / "out.csv"),
            ProgressReporter(),
            slides=None,
            gpus=0,
        )


def steps_of(fold: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((fold / "steps").iterdir())])


@pytest.mark.slow
def test_two_ray_train_workers_end_like_one(tiny_config: Config, ray_cluster: Connection, tmp_path: Path) -> None:
    one = changed(tiny_config, train__bags_per_step=4, train__epochs=2, model__dropout=0.3)
    train_folds(inputs_of(one), [0], ProgressReporter(), own_cluster=True)
    two = changed(one, cluster__workers=2, run__dir=str(tmp_path / "two"), store__uri=f"{one.run.dir}/bags")
    train_folds(inputs_of(two), [0], ProgressReporter(), own_cluster=True)
    ours, alone = (Path(config.run.dir) / "fold=0" for config in (two, one))
    for folder in (".", "refit"):
        pd.testing.assert_frame_equal(steps_of(ours / folder), steps_of(alone / folder), atol=1e-5, rtol=1e-5)
    for table in ("val_slides", "test_slides"):
        tables = (pd.read_parquet(place / f"{table}.parquet") for place in (ours, alone))
        pd.testing.assert_frame_equal(*tables, atol=1e-5, rtol=1e-5)
    ends = [json.loads((place / "result.json").read_text()) for place in (ours, alone)]
    assert ends[0]["test_scores"]["auc"] == pytest.approx(ends[1]["test_scores"]["auc"], abs=1e-5)
    run = [json.loads((Path(c.run.dir) / "provenance.json").read_text())["fingerprint"] for c in (one, two)]
    assert run[0] == run[1]
