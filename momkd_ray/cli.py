"""The command line: each verb, such as `crossval`, hands its options to the part of the package that does the work."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from momkd_ray import __version__, progress
from momkd_ray.cli_options import AddressOption, JsonOption, OnErrorOption, show
from momkd_ray.config.load import Config, load_config
from momkd_ray.config.sections import resolve_location
from momkd_ray.credentials import redact
from momkd_ray.doctor.command import doctor
from momkd_ray.errors import InputError, StoppedError, input_error_within, run_error_within
from momkd_ray.evaluate.command import evaluate
from momkd_ray.export.command import export, import_
from momkd_ray.heatmap.command import heatmap
from momkd_ray.init_config.command import init
from momkd_ray.statistics.spread import metrics_table

app = typer.Typer(
    help="Train, cross-validate and run MoMKD on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"momkd-ray {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print details, and the traceback of every error.")
    ] = False,
) -> None:
    if quiet and verbose:
        raise typer.BadParameter("choose one of the two", param_hint="--quiet and --verbose")
    progress.QUIET, progress.VERBOSE, _Errors.verbose = quiet, verbose, verbose


class _Errors:
    """How errors are reported: with `--verbose` their tracebacks, too."""

    verbose = False


ConfigOption = Annotated[str, typer.Option("--config", "-c", help="The YAML configuration.")]
SetOption = Annotated[list[str], typer.Option("--set", help="Replace a value: a.b=value. May be repeated.")]


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="Folder of the generated cohort and the run.")] = "momkd-demo",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate a cohort, ingest, cross-validate and report, in a few minutes."""
    from momkd_ray.synthetic.demo import demo_config

    _cross_validate(demo_config(resolve_location(out)), address, as_json=as_json)


@app.command()
def crossval(
    config: ConfigOption,
    set_: SetOption = [],  # noqa: B006
    on_error: OnErrorOption = "stop",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train and test every fold, then write metrics, predictions and the report; resumes an interrupted run."""
    _cross_validate(load_config(config, set_), address, on_error, as_json=as_json)


@app.command()
def compare(
    config: ConfigOption,
    set_: SetOption = [],  # noqa: B006
    on_error: OnErrorOption = "stop",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train several models on the same folds and write their leaderboard; goes on where it stopped."""
    from momkd_ray.compare.entries import entries_of
    from momkd_ray.compare.run import compare_models
    from momkd_ray.compare.tables import to_markdown
    from momkd_ray.crossval.open_run import open_run

    settings = load_config(config, set_)
    entries_of(settings)
    with open_run(settings, address, on_error) as run:
        leaderboard = compare_models(run.inputs, run.progress, own_cluster=run.own_cluster)
    page = f"{settings.run.dir}/compare.html"
    show(f"{to_markdown(leaderboard)}\n{page}", leaderboard.to_json() | {"page": page}, as_json=as_json)


@app.command()
def train(
    config: ConfigOption,
    fold: Annotated[int, typer.Option(help="The fold to train.")],
    set_: SetOption = [],  # noqa: B006
    on_error: OnErrorOption = "stop",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train and test one fold; others may be trained beside it in the same run directory."""
    from momkd_ray import storage
    from momkd_ray.crossval.cross_validate import train_folds
    from momkd_ray.crossval.open_run import open_run

    settings = load_config(config, set_)
    with open_run(settings, address, on_error, fold=fold) as run:
        train_folds(run.inputs, [fold], run.progress, own_cluster=run.own_cluster)
    directory = run.inputs.fold_directory(fold)
    content = storage.read_json(directory.result) | {"folder": directory.location}
    show(directory.location, content, as_json=as_json)


@app.command()
def audit(
    config: ConfigOption,
    set_: SetOption = [],  # noqa: B006
    out: Annotated[str | None, typer.Option(help="Folder of audit.csv, audit.json; default: <run.dir>/audit.")] = None,
    on_error: OnErrorOption = "stop",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check every input and list all faults; the exit code is 1 if there are any, unless with `--on-error skip`."""
    from momkd_ray import storage
    from momkd_ray.audit.audit import audit_inputs
    from momkd_ray.input_faults import OPEN_ELSEWHERE, raise_open_elsewhere
    from momkd_ray.progress import ProgressReporter
    from momkd_ray.ray_runtime.small_work import connect_if_named
    from momkd_ray.run.layout import RunDirectory
    from momkd_ray.synthetic.cohort import generate_cohort

    settings = load_config(config, set_, trains=False)
    if settings.synthetic is not None:
        generate_cohort(settings.synthetic)
    folder = resolve_location(out) if out else RunDirectory(settings.run.dir).audit
    with connect_if_named(address), ProgressReporter() as progress:
        findings = audit_inputs(settings, lambda done, of: progress.update("audit", done, of, "slides"))
    findings.write(folder)
    table = storage.join(folder, "audit.csv")
    show(f"{findings.text()}\n\n{findings.listing(table)}", findings.to_json() | {"table": table}, as_json=as_json)
    if on_error == "skip" or all(fault.problem == OPEN_ELSEWHERE for fault in findings.faults):
        raise_open_elsewhere(findings.faults, "the inputs")
    if not findings.ok and on_error == "stop":
        raise InputError(findings.verdict())


@app.command()
def ingest(
    config: ConfigOption,
    set_: SetOption = [],  # noqa: B006
    clean: Annotated[bool, typer.Option(help="Then remove the store's parts that its manifest does not list.")] = False,
    on_error: OnErrorOption = "stop",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read the feature files into the bag store."""
    from momkd_ray.bags import unused
    from momkd_ray.progress import ProgressReporter
    from momkd_ray.ray_runtime.small_work import connect_if_worth
    from momkd_ray.run.prepare import ensure_store, open_cohort, refuse_absent_features, work_of_ingest

    settings = load_config(config, set_, trains=False)
    with ProgressReporter() as progress:
        cohort = open_cohort(settings, progress, on_error)
        refuse_absent_features(settings, cohort)
    uri = settings.store_uri
    with (
        connect_if_worth(work_of_ingest(settings, cohort), address),
        ProgressReporter() as progress,
        unused.using(uri, progress.info),
    ):
        store, _ = ensure_store(settings, cohort, progress, on_error)
    removed = unused.clean(uri) if clean else None
    told = (removed.sentence(uri) or f"{uri} has nothing to remove") if removed else unused.unused_sentence(uri)
    if told:
        ProgressReporter().info(told)
    patches = int(store.slides["n_patches"].sum())
    content: dict[str, Any] = {
        "store": store.uri,
        "bags": len(store.slides),
        "patches": patches,
        "width": store.width,
    }
    if removed:
        content |= {"removed_files": removed.count, "removed_bytes": removed.bytes}
    show(f"{store.uri}: {len(store.slides)} bags, {patches} patches of {store.width}", content, as_json=as_json)


@app.command()
def split(
    config: ConfigOption,
    set_: SetOption = [],  # noqa: B006
    on_error: OnErrorOption = "stop",
    as_json: JsonOption = False,
) -> None:
    """Write the folds to folds.csv in the run directory, and count their patients by role and class."""
    from momkd_ray.cohort.fold_checks import folds_text, patients_per_fold
    from momkd_ray.progress import ProgressReporter
    from momkd_ray.run.layout import RunDirectory
    from momkd_ray.run.prepare import open_cohort, open_folds
    from momkd_ray.run.provenance import refuse_other_folds

    settings = load_config(config, set_, trains=False)
    with ProgressReporter() as progress:
        cohort = open_cohort(settings, progress, on_error)
        plan = open_folds(settings, cohort, progress)
    directory = RunDirectory(settings.run.dir)
    refuse_other_folds(directory, plan, cohort.patient_column)
    plan.to_csv(directory.folds, cohort.patient_column)
    counts = patients_per_fold(settings, cohort, plan)
    content = {"table": directory.folds, "folds": list(plan.folds), "patients": counts.to_dict("records")}
    show(f"{folds_text(counts)}\n\n{directory.folds}", content, as_json=as_json)


@app.command()
def predict(
    features: Annotated[str, typer.Option(help="Folder of feature files, local or s3://.")],
    out: Annotated[str, typer.Option(help="The file to write, .csv or .parquet.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Model bundles, such as runs/pr/fold=*/model, or a run, runs/pr. Several are averaged."),
    ] = None,
    model: Annotated[list[str], typer.Option(help="Another model bundle. May be repeated.")] = [],  # noqa: B006
    slides: Annotated[str | None, typer.Option(help="Table of patients and slides.")] = None,
    patient_column: Annotated[str | None, typer.Option(help="Its column of patients. Default: by its name.")] = None,
    slide_column: Annotated[str | None, typer.Option(help="Its column of slides. Default: by its name.")] = None,
    patients: Annotated[bool, typer.Option("--patients", help="Average the slides of each patient.")] = False,
    gpus: Annotated[float, typer.Option(help="GPUs of each task; may be a fraction.")] = 0,
    on_error: OnErrorOption = "stop",
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict slides from histology alone."""
    from momkd_ray import storage
    from momkd_ray.api import predict_slides
    from momkd_ray.predict.ensemble import metrics_location

    bundles = [*model, *(models or [])]
    if not bundles:
        raise typer.BadParameter("name a model bundle, such as runs/pr/fold=0/model", param_hint="MODELS")
    predictions = predict_slides(
        bundles,
        features,
        out,
        slides=slides,
        by_patient=patients,
        gpus=gpus,
        address=address,
        on_error=on_error,
        patient_column=patient_column,
        slide_column=slide_column,
    )
    content = {"table": resolve_location(out), "predictions": predictions.to_dict("records")}
    if storage.exists(metrics_location(resolve_location(out))):
        content["metrics"] = storage.read_json(metrics_location(resolve_location(out)))
    show(resolve_location(out), content, as_json=as_json)


app.command()(doctor)
app.command()(evaluate)
app.command()(export)
app.command("import")(import_)
app.command()(heatmap)
app.command()(init)


@app.command()
def report(
    run: Annotated[str, typer.Option(help="The run directory.")],
    compare: Annotated[
        str | None, typer.Option(help="Run directory of a comparison that tells what the omics bought; default: --run.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild the report of a finished cross-validation."""
    from momkd_ray.report.page import write_report

    page = write_report(resolve_location(run), resolve_location(compare) if compare else None)
    show(page, {"page": page}, as_json=as_json)


@app.command()
def import_released(
    checkpoint: Annotated[str, typer.Argument(help="A .pt file of the authors' implementation.")],
    out: Annotated[str, typer.Option(help="Folder of the model bundle.")],
    label: Annotated[str, typer.Option(help="Name of the label that the model predicts, such as HER2.")] = "label",
    negative: Annotated[str, typer.Option(help="Name of class 0.")] = "negative",
    positive: Annotated[str, typer.Option(help="Name of class 1.")] = "positive",
    threshold: Annotated[float, typer.Option(help="On the probability of the positive class.", min=0, max=1)] = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Convert a checkpoint of the authors' implementation to a model bundle."""
    from momkd_ray.model.bundle import BundleCard, save_bundle
    from momkd_ray.model.released_checkpoint import NEIGHBORS, read_released

    model = read_released(checkpoint)
    card = BundleCard(
        label=label,
        classes=(negative, positive),
        threshold=threshold,
        width=model.width,
        neighbors=NEIGHBORS,
        genes=model.genes,
        model=model.model_config,
        memory=model.memory_config,
        loss=model.loss_config,
        origin={"released_checkpoint": Path(checkpoint).name},
    )
    save_bundle(resolve_location(out), model, card)
    show(resolve_location(out), {"models": [resolve_location(out)]}, as_json=as_json)


def _cross_validate(
    settings: Config, address: str | None, on_error: Literal["stop", "skip"] = "stop", *, as_json: bool
) -> None:
    from momkd_ray.api import cross_validate
    from momkd_ray.run.layout import RunDirectory

    metrics = cross_validate(settings, address=address, on_error=on_error)
    report = RunDirectory(settings.run.dir).report
    show(f"{metrics_table(metrics['metrics'])}\n\nReport: {report}", metrics | {"report": report}, as_json=as_json)


class _Terminated:
    """Handles SIGTERM: exits with a sentence, and remembers it: Ray replaces the code of a `SystemExit` by 1."""

    EXIT_CODE = 143

    def __init__(self) -> None:
        self.received = False

    def __call__(self, *_: object) -> None:
        self.received = True
        sentence = "terminated; finished folds and epochs are kept: run the same command again to resume"
        print(f"momkd-ray: {sentence}", file=sys.stderr)
        sys.exit(self.EXIT_CODE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a verb and exits: 0 done, 1 bad input, 2 usage, 3 run failed, 130 interrupted, 143 terminated.

    Args:
        arguments: verb and options; by default those of the process.
    """
    terminated = _Terminated()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminated)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="momkd-ray")
    except SystemExit:
        if terminated.received:
            sys.exit(terminated.EXIT_CODE)
        raise
    except Exception as error:
        if _Errors.verbose:
            print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        if wrong := input_error_within(error):
            print(f"momkd-ray: {redact(' '.join(str(wrong).split()))}", file=sys.stderr)
            sys.exit(1)
        if failed := error if isinstance(error, StoppedError) else run_error_within(error):
            print(f"momkd-ray: {redact(' '.join(str(failed).split()))}", file=sys.stderr)
        elif not _Errors.verbose:
            print(redact("".join(traceback.format_exception(error))), file=sys.stderr, end="")
        sys.exit(130 if isinstance(error, StoppedError) else 3)


if __name__ == "__main__":
    main()
