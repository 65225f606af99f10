"""The command line: light to start, one sentence for bad input, exit codes."""

from __future__ import annotations

import gc
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import typer
from support.command_line import outcome

from momkd_ray.cli import app
from momkd_ray.cli_options import imports_kept
from momkd_ray.config.load import Config
from momkd_ray.model.bundle import load_bundle
from momkd_ray.ray_runtime.cluster import Connection


def test_help_and_import_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys, momkd_ray.cli\n"
        "try: momkd_ray.cli.main(['--help'])\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'ray', 'pandas', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "crossval" in done.stdout


def test_usage_errors_exit_with_2() -> None:
    assert outcome("crossval") == 2
    assert outcome("no-such-verb") == 2


def test_sigterm_exits_with_143_also_within_a_call_of_ray() -> None:
    code = (
        "import os, signal, sys, momkd_ray.cli as cli\n"
        "def app(**_):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except SystemExit: sys.exit(1)  # as Ray does\n"
        "cli.app = app\n"
        "cli.main([])"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 143, done.stderr
    assert "terminated; finished folds and epochs are kept" in done.stderr


def test_garbage_is_collected_again_after_imports_also_after_one_that_fails() -> None:
    with imports_kept():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ModuleNotFoundError), imports_kept():
        importlib.import_module("momkd_ray.no_such_room")
    assert gc.isenabled()
    gc.unfreeze()


def rewrite(path: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def contradict_first(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Repeats the first row with another row's value of a column."""

    def contradict(table: pd.DataFrame) -> pd.DataFrame:
        first = table.head(1)
        other = table.loc[table[column] != first[column].iloc[0], column].iloc[0]
        return pd.concat([table, first.assign(**{column: other})])

    return contradict


def two_folds_for_the_first_patient(config: Config, folder: Path) -> list[str]:
    patients = pd.read_csv(config.cohort.clinical)["PATIENT"]
    folds = pd.DataFrame({"PATIENT": patients, "fold": np.arange(len(patients)) % 2})
    folds = pd.concat([folds, folds.head(1).assign(fold=1 - folds["fold"].iloc[0])])
    folds.to_csv(folder / "folds.csv", index=False)
    return ["--set", f"folds.file={folder / 'folds.csv'}"]


BAD_TABLES: dict[str, tuple[Callable[[Config, Path], list[str] | None], str]] = {
    "missing file": (lambda c, d: Path(c.cohort.clinical).unlink(), "clinical.csv"),
    "no label column": (lambda c, d: ["--set", "cohort.label=HER2"], "HER2"),
    "label values": (lambda c, d: ["--set", "cohort.positive=high"], "high"),
    "duplicated patient": (lambda c, d: rewrite(c.cohort.clinical, contradict_first("LABEL")), "clinical.csv"),
    "duplicated slide": (lambda c, d: rewrite(c.cohort.slides, contradict_first("PATIENT")), "slides.csv"),
    "too few for the folds": (lambda c, d: ["--set", "folds.n=20"], "folds"),
    "patient in two folds": (two_folds_for_the_first_patient, "folds"),
    "unknown key": (lambda c, d: ["--set", "train.epoch=3"], "train.epochs"),
    "no configuration": (lambda c, d: ["--config", str(d / "none.yaml")], "none.yaml"),
}


@pytest.fixture
def own_config(tiny_config: Config, tmp_path: Path) -> Config:
    """The tiny configuration on a copy of its cohort that a test may spoil."""
    import shutil

    folder = tmp_path / "cohort"
    shutil.copytree(tiny_config.features.dir + "/..", folder)
    tree = tiny_config.model_dump(mode="json")
    for name in ("clinical", "slides", "omics"):
        tree["cohort"][name] = str(folder / Path(tree["cohort"][name]).name)
    tree["features"]["dir"] = str(folder / "features")
    return Config.model_validate(tree)


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_get_one_sentence_and_exit_code_1(
    own_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    spoil, words = BAD_TABLES[name]
    path = tmp_path / "c.yaml"
    path.write_text(own_config.to_yaml())
    extra = spoil(own_config, tmp_path) or []
    assert outcome("crossval", "--config", str(path), *extra) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("momkd-ray: ")
    assert words in last
    assert not Path(own_config.run.dir).exists()


def spoiled(file: h5py.File, features: np.ndarray | None) -> None:
    del file["features"]
    if features is not None:
        file["features"] = features


BAD_FEATURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: p.unlink(), "{}"),
    "not HDF5": (lambda p: p.write_text("text"), "{}"),
    "NaN": (
        lambda p: _edit(p, lambda f: f["features"].write_direct(np.full(f["features"].shape, np.nan, "f4"))),
        "NaN",
    ),
    "another width": (
        lambda p: _edit(p, lambda f: spoiled(f, np.arange(5.0 * len(f["coords"])).reshape(-1, 5))),
        "width|wide",
    ),
    "no features": (lambda p: _edit(p, lambda f: spoiled(f, None)), "features"),
    "no coords": (lambda p: _edit(p, lambda f: f.pop("coords")), "coords"),
    "zero patches": (lambda p: _edit(p, lambda f: spoiled(f, np.ones((0, 16), "f4"))), "patches|rows|empty"),
}


def _edit(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_bad_feature_files_get_one_sentence_and_exit_code_1(
    own_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, no_cluster: None
) -> None:
    import re

    spoil, words = BAD_FEATURES[name]
    slides = pd.read_csv(own_config.cohort.slides)
    labelled = pd.read_csv(own_config.cohort.clinical).query("LABEL in ['positive', 'negative']")
    file_name = slides[slides["PATIENT"].isin(labelled["PATIENT"])]["FILENAME"].iloc[3]
    spoil(Path(own_config.features.dir) / file_name)
    path = tmp_path / "c.yaml"
    path.write_text(own_config.to_yaml())
    assert outcome("ingest", "--config", str(path)) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("momkd-ray: ")
    assert file_name in last
    assert re.search(words.format(file_name), last)
    assert pd.read_csv(f"{own_config.store_uri}/rejected.csv")["id"].tolist() == [file_name.removesuffix(".h5")]


def test_every_verb_prints_json_for_scripts() -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(verbs) > 12
    for name, verb in verbs.items():
        assert any("--json" in option.opts for option in verb.params), name


def test_split_writes_folds_that_can_be_imported(
    own_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(own_config.to_yaml())
    assert outcome("split", "--config", str(path), "--json") == 0
    folds = Path(own_config.run.dir) / "folds.csv"
    told = json.loads(capsys.readouterr().out)
    assert (told["table"], told["folds"]) == (str(folds), [0, 1])
    first = folds.read_text()
    roles = pd.read_csv(folds)
    for row in told["patients"]:
        assert row["positive"] + row["negative"] == (roles[f"role_{row['fold']}"] == row["role"]).sum()
    assert len(told["patients"]) == 6
    assert (
        outcome(
            "split", "--config", str(path), "--set", f"folds.file={folds}", "--set", "run.dir=" + str(tmp_path / "r")
        )
        == 0
    )
    assert (tmp_path / "r" / "folds.csv").read_text() == first
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["fold", "role", "negative", "positive", "with", "omics"]
    assert shown[-1] == str(tmp_path / "r" / "folds.csv")


def test_a_released_checkpoint_becomes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from support.models import released_state

    torch.save(released_state(), tmp_path / "best.pt")
    arguments = ["import-released", str(tmp_path / "best.pt"), "--out", str(tmp_path / "m"), "--label", "HER2"]
    assert outcome(*arguments) == 0
    _, card = load_bundle(str(tmp_path / "m"))
    assert (card.label, card.width, card.neighbors, card.memory.rule) == ("HER2", 32, 8, "gradient")
    assert outcome("import-released", str(tmp_path / "none.pt"), "--out", str(tmp_path / "n")) == 1
    assert "none.pt" in capsys.readouterr().err


def test_an_address_where_no_cluster_is_gets_one_sentence(
    own_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(own_config.to_yaml())
    assert outcome("ingest", "--config", str(path), "--address", "127.0.0.1:1") == 1
    assert "127.0.0.1:1" in capsys.readouterr().err


def test_a_report_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("report", "--run", str(tmp_path)) == 1
    assert "no finished cross-validation" in capsys.readouterr().err


def test_predicting_an_empty_folder_or_without_a_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_cluster: None
) -> None:
    common = ["predict", "--features", str(tmp_path), "--out", str(tmp_path / "p.csv")]
    assert outcome(*common) == 2
    assert "name a model bundle" in capsys.readouterr().err
    assert outcome(*common, "--model", str(tmp_path / "none")) == 1
    assert "no model bundle" in capsys.readouterr().err


def test_one_fold_can_be_trained_and_predicts_new_slides(
    own_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: Connection
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(own_config.to_yaml())
    assert outcome("train", "--config", str(path), "--fold", "7") == 1
    assert "the folds are 0, 1" in capsys.readouterr().err
    once = ["--set", "train.epochs=1", "--set", "train.precision=auto"]
    assert outcome("train", "--config", str(path), "--fold", "1", *once, "--json") == 0
    run = Path(own_config.run.dir)
    told = json.loads(capsys.readouterr().out)
    assert (told["fold"], told["folder"]) == (1, str(run / "fold=1"))
    assert (told["device"], told["epochs"]) == ("CPU", 1)
    assert told["precision"] in ("fp32", "bf16")
    assert load_bundle(str(run / "fold=1" / "model"))[1].origin["precision"] == told["precision"]
    assert "gpus_per_worker: auto" in (run / "run.yaml").read_text()
    assert (run / "fold=1" / "result.json").exists()
    assert not (run / "fold=0").exists()

    model, features, out = str(run / "fold=1" / "model"), own_config.features.dir, tmp_path / "p.parquet"
    common = ["predict", "--model", model, "--features", features, "--out", str(out)]
    assert outcome(*common, "--json") == 0
    table = pd.read_parquet(out)
    assert json.loads(capsys.readouterr().out) == {"table": str(out), "predictions": table.to_dict("records")}
    assert list(table.columns) == ["slide_id", "patient_id", "p_negative", "p_positive", "predicted", "trained_on"]
    assert (table["slide_id"] == table["patient_id"]).all()
    assert len(table) == len(list(Path(features).iterdir()))

    assert outcome(*common, "--slides", own_config.cohort.slides, "--patients") == 0
    patients = pd.read_parquet(out)
    owner = pd.read_csv(own_config.cohort.slides).set_index("FILENAME")["PATIENT"]
    expected = table.groupby(owner.loc[table["slide_id"] + ".h5"].to_numpy())["p_positive"].mean()
    assert patients.set_index("patient_id")["p_positive"].to_dict() == pytest.approx(expected.to_dict())
    assert "slide_id" not in patients

    # a table that leaves a slide out, or names one that has no file, loses nothing in silence: the rest is predicted
    slides = pd.read_csv(own_config.cohort.slides)
    slides.iloc[1:].to_csv(tmp_path / "fewer.csv", index=False)
    left_out = slides["FILENAME"].iloc[0].removesuffix(".h5")

    def the_rest_is_predicted(reason: str, *arguments: str) -> None:
        capsys.readouterr()
        assert outcome(*common, *arguments) == 0
        assert f"1 slide is left out; {out}.rejected.csv lists it" in capsys.readouterr().err
        rejected = pd.read_csv(f"{out}.rejected.csv")
        assert rejected["id"].tolist() == [left_out]
        assert reason in rejected["reason"].iloc[0]
        assert pd.read_parquet(out)["slide_id"].tolist() == [s for s in table["slide_id"] if s != left_out]

    the_rest_is_predicted("names no patient", "--slides", str(tmp_path / "fewer.csv"))
    (Path(features) / slides["FILENAME"].iloc[0]).unlink()
    the_rest_is_predicted("no feature file", "--slides", own_config.cohort.slides)
    the_rest_is_predicted("no feature file", "--slides", own_config.cohort.slides, "--on-error", "skip")


def test_several_models_are_given_as_a_shell_lists_them_and_patients_must_be_known_to_models_of_patients(
    own_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_cluster: None
) -> None:
    from support.models import card_of, small_model

    from momkd_ray.model.bundle import save_bundle

    places, tables = [], []
    for seed in (0, 1, 2):
        model = small_model()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * seed)
        places.append(str(tmp_path / f"fold={seed}" / "model"))
        save_bundle(places[-1], model, card_of(model))
    width = card_of(model).width
    features = tmp_path / "features"
    features.mkdir()
    rng = np.random.default_rng(0)
    for slide in range(6):
        with h5py.File(features / f"s{slide}.h5", "w") as file:
            file["features"] = rng.normal(size=(12, width)).astype("f4")
            file["coords"] = np.stack(np.divmod(np.arange(12), 4), axis=1) * 256
    common = ["--features", str(features), "--out", str(tmp_path / "p.csv")]
    (tmp_path / "run.yaml").write_text("{}")
    (tmp_path / "metrics.json").write_text('{"folds": [{"fold": 0}, {"fold": 1}, {"fold": 2}]}')
    mixed = ["--model", places[2], "--model", places[0], places[1], places[1]]
    for models in (["--model", *places], places, mixed, [str(tmp_path)]):
        assert outcome("predict", *models, *common) == 0
        tables.append(pd.read_csv(tmp_path / "p.csv").set_index("slide_id")["p_positive"])
    assert all(np.allclose(table, tables[0], atol=1e-6) for table in tables)
    assert f"{tmp_path} is a run directory: the models of its 3 folds predict together" in capsys.readouterr().err
    alone = []
    for place in places:  # one call after another finds its own model in the same processes
        assert outcome("predict", place, *common) == 0
        alone.append(pd.read_csv(tmp_path / "p.csv").set_index("slide_id")["p_positive"])
    assert np.allclose(sum(alone) / 3, tables[0], atol=1e-6)
    assert not np.allclose(alone[0], alone[1], atol=1e-6)

    save_bundle(places[0], model, card_of(model).model_copy(update={"bag": "patient"}))
    assert outcome("predict", places[0], *common) == 1
    assert "give --slides with a table of patients and slides" in capsys.readouterr().err


def test_the_slides_to_predict_are_named_as_those_of_a_cohort(tmp_path: Path) -> None:
    from momkd_ray.predict.slides import list_slides, match_patients, open_slides

    path = tmp_path / "clam.csv"
    path.write_text(",case_id,slide_id\n0,A,a1.F6E9A5DF\n1,A,a2\n2,B,007\n")
    features = tmp_path / "features"
    features.mkdir()
    for slide in ("007", "a1.F6E9A5DF", "a2"):
        (features / f"{slide}.h5").touch()
    slides = list_slides(str(features))
    table, patients, faults = match_patients(open_slides(str(path), None, None), slides, str(features))
    assert (patients, faults) == ({"a1.F6E9A5DF": "A", "a2": "A", "007": "B"}, [])
    assert sorted(table["slide_id"]) == ["007", "a1.F6E9A5DF", "a2"]
    path.write_text(path.read_text() + "3,B,a2\n")
    _, patients, faults = match_patients(open_slides(str(path), None, None), slides, str(features))
    assert patients == {"a1.F6E9A5DF": "A", "007": "B"}
    assert [(fault.id, fault.problem) for fault in faults] == [("a2", "duplicated")]
    assert "slide 'a2' is of patient 'A'" in faults[0].reason
