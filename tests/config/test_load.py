"""The configuration tree: YAML in and out, overrides, and what wrong keys and values get."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from momkd_ray.config.dotted_keys import dotted_keys
from momkd_ray.config.load import Config, load_config
from momkd_ray.errors import InputError
from momkd_ray.synthetic.demo import demo_config

JOBS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.fixture
def written(tmp_path: Path, tiny_config: Config) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(tiny_config.to_yaml())
    return str(path)


def test_yaml_comes_back_as_it_went(written: str, tiny_config: Config) -> None:
    assert load_config(written) == tiny_config


def test_set_replaces_values_of_every_kind(written: str) -> None:
    config = load_config(
        written,
        ["train.lr=2e-4", "memory.rule=fixed", "cohort.omics=null", "run.dir=s3://bucket/run"],
    )
    assert (config.train.lr, config.memory.rule, config.cohort.omics) == (2e-4, "fixed", None)
    assert config.run.dir == "s3://bucket/run"
    assert config.store_uri == "s3://bucket/run/bags"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rate=1", "'train' has bags_per_step, .*epochs, fraction, keep, lr,"),
        ("train.epoch=1", "'train.epochs'"),
        ("trian.epochs=1", "'train'"),
        ("train.epochs=0", "is 0, but must be greater than or equal to 1"),
        ("train.epochs=five", "'train.epochs' is 'five', but must be an integer$"),
        ("train.balanced=perhaps", "'perhaps', but must be true or false$"),
        ("train=5", "'train' is 5, but must be a mapping such as 'key: value'$"),
        ("memory.rule=moving", "'ema', 'gradient' or 'fixed'"),
        ("train.epochs", "a.b=value"),
        ("train.lr.x=1", "no keys below"),
        ("cohort.label=yes", "quote it"),
        ("cohort.positive={a: b}", "no label"),
        ("cohort.negative=[]", "names no label"),
        ("search={'train.lrr': [1]}", "'train.lr'"),
        ("search={'trian.lr': [1]}", "'train.lr'; the sections are cluster, cohort,"),
        ("search={'run.dir': [a]}", "cannot vary"),
        ("search={'train.lr': []}", "no values"),
        ("search={'genes.n': [5, many]}", "'genes.n' is 'many', but must be an integer"),
        ("search=[train.lr]", "dotted keys"),
        ("search={'train.lr': 1}", "list of values or a range"),
        ("search={'train.lr': {low: 1}}", "needs 'high'"),
        ("search={'train.lr': {low: 1, high: 2, by: log}}", "no 'by'"),
        ("search={'train.lr': {low: a, high: 2}}", "'low' is 'a', but must be a number"),
        ("search={'train.lr': {low: 2, high: 1, log: true}}", r"low \(2\) must be below high"),
        ("search={'train.lr': {low: 0, high: 1, log: true}}", "above 0"),
        ("search={'train.lr': {low: 1, high: 2, log: true, step: 1}}", "exclude each other"),
        ("search={'train.lr': {low: 1, high: 2, step: 3}}", "fit between"),
        ("search={'train.lr': {low: 0, high: 1, step: 0.5}}", "'train.lr' is 0.0, but .* greater than 0"),
        ("search={'model.dropout': {low: 0, high: 1, step: 0.5}}", "less than 1"),
        ("search={'genes.n': {low: 1.5, high: 3, step: 1}}", "integers"),
        ("search={'model.hidden': {low: 2, high: 8, step: 1}}", "multiple of heads"),
        ("search={'memory.rule': {low: 1, high: 2}}", "not a number"),
        ("search={'train.balanced': {low: 0, high: 1}}", "not a number"),
        ("search={'train.lr': {low: 1, high: 2}}", "a grid tries every value"),
        ("tuning={settings: 5}", "a grid tries every combination"),
        ("tuning={method: random}", "without a search"),
        ("search={'genes.n': [5, 5]}", "lists 5 twice"),
        ("tuning={methods: random}", "'tuning.method'"),
        ("cluster={workers: 2, gpus_per_worker: 0.5}", "NCCL"),
        ("cluster={gpus_per_worker: 1.5}", "must be an integer"),
        ("model.heads=3", "multiple of heads"),
    ],
)
def test_a_wrong_override_is_named_in_one_sentence(written: str, override: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_config(written, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_the_file", [True, False])
@pytest.mark.parametrize(
    ("key", "value"), [("train.epoch", "3"), ("train.epochs", "five"), ("trian.epochs", "1"), ("train.keep", "worst")]
)
def test_a_wrong_value_is_blamed_on_where_it_was_given(written: str, key: str, value: str, in_the_file: bool) -> None:
    section, name = key.split(".")
    overrides = ["run.dir=/elsewhere", f"{key}={value}"]
    if in_the_file:
        tree = yaml.safe_load(Path(written).read_text())
        tree.setdefault(section, {})[name] = value
        Path(written).write_text(yaml.safe_dump(tree))
        overrides = overrides[:1]
    with pytest.raises(InputError) as caught:
        load_config(written, overrides)
    assert str(caught.value).startswith(f"{written}: " if in_the_file else f"--set {key}={value}: ")


def test_what_the_file_and_set_do_not_agree_in_is_told_with_both(written: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(written, ["train.keep=best", "run.dir=/elsewhere"])
    assert str(caught.value).startswith(f"{written} with --set train.keep=best: train: refit needs keep: last")


def test_a_search_of_ranges_comes_back_and_draws_no_more_than_there_is(written: str, tmp_path: Path) -> None:
    search = "search={'memory.components': {low: 4, high: 6}, 'train.lr': [0.1, 0.2]}"
    config = load_config(written, [search, "tuning={method: random, settings: 6}"])
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    fold = config.with_settings({"train.lr": 0.1, "memory.components": 5})
    assert (fold.train.lr, fold.memory.components, fold.search) == (0.1, 5, {})
    with pytest.raises(InputError, match="only 6 combinations"):
        load_config(written, [search, "tuning={method: random, settings: 7}"])
    without = load_config(written)
    assert without.model_copy(update={"tuning": config.tuning}).answer_fingerprint() == without.answer_fingerprint()
    more = load_config(written, [search, "tuning={method: random, settings: 5}"])
    assert more.answer_fingerprint() != config.answer_fingerprint()


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a", "mapping"), ("a: [", "not valid YAML"), ("cohort: {label: PR}", "missing"), ("", "missing")],
)
def test_a_wrong_file_is_named_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_config(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path / "none.yaml")


def test_every_unknown_key_next_to_a_known_one_is_led_back(written: str) -> None:
    for key in dotted_keys(Config):
        with pytest.raises(InputError, match=f"'{key}'"):
            load_config(written, [f"{key}_=1"])


def test_where_and_on_what_a_run_happens_does_not_change_its_fingerprint(written: str) -> None:
    same = load_config(written).answer_fingerprint()
    for override in (
        "cluster.cpus_per_worker=4",
        "run.dir=/elsewhere",
        "store.part_mb=7",
        "train.patches_per_pass=9",
        "cohort.slides=/elsewhere.csv",
        "cohort.patient_column=PATIENT",  # what the column holds is in the cohort's own fingerprint
    ):
        assert load_config(written, [override]).answer_fingerprint() == same
    for override in ("train.lr=0.5", "train.seed=9", "memory.rule=fixed", "store.dtype=float32", "folds.seed=4"):
        assert load_config(written, [override]).answer_fingerprint() != same


def test_relative_paths_are_made_absolute_for_workers_elsewhere(written: str, tmp_path: Path) -> None:
    config = load_config(written, ["genes.select=list.txt", "features.dir=~/features", "run.dir=$HOME/run"])
    assert Path(config.genes.select).is_absolute()
    assert config.features.dir == str(Path.home() / "features")
    assert config.run.dir == str(Path.home() / "run")


def test_a_job_neither_writes_into_its_copy_of_the_checkout_nor_looks_for_data_in_it(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0c5e42de6be9b072"
    (copy / "data").mkdir(parents=True)
    (copy / "data" / "clinical.csv").touch()
    monkeypatch.chdir(copy)
    load_config(written, ["cohort.clinical=data/clinical.csv"])  # uploaded with the job
    for key, place in {"run.dir": "runs/pr", "store.uri": "bags", "cohort.omics": "data/rna.csv"}.items():
        with pytest.raises(InputError, match=rf"^{key} is {place}, which in a job .* absolute path"):
            load_config(written, [f"{key}={place}"])


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_jobs_configurations_are_valid(path: Path) -> None:
    load_config(path)


def test_the_demo_job_is_the_demo() -> None:
    job = load_config(JOBS / "demo.yaml")
    assert job == demo_config(str(Path.home() / "momkd-demo"))
    assert yaml.safe_load(job.to_yaml())["train"]["bags_per_step"] == 4
