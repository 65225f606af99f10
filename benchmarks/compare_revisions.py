"""Trains the demo at two revisions and compares everything that the runs answer, bit for bit.

    python benchmarks/compare_revisions.py REV_A [REV_B] [--resume] [--out DIR] [--set KEY=VALUE ...]

A change that should alter no number proves it with this: same seed, identical weights. Both revisions generate the
demo's cohort, train its five folds with `train.precision=fp32` and `train.deterministic=true`, and predict. It compares
the SHA-256 of every model's weights, every prediction, every loss of every step, and every figure of `metrics.json`,
`metrics.jsonl`, `result.json` and `model.json` apart from seconds and versions. Sentences may be reworded and are left
out.

Each revision is checked out into a git worktree of its own; without REV_B the second is this checkout as it stands.
With `--resume` the second run is begun by REV_A, terminated in the middle of a fold and finished by REV_B.
Exits with 1 if anything differs. With `--out` the runs are kept, and a commit that was run before is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = ("train.precision=fp32", "train.deterministic=true")
NOT_ANSWERS = ("seconds_", "version")  # keys that begin so: times, and the package's version


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("first", metavar="REV_A")
    arguments.add_argument("second", metavar="REV_B", nargs="?", help="default: this checkout as it stands")
    arguments.add_argument("--out", type=Path, help="a folder that keeps the runs")
    arguments.add_argument("--resume", action="store_true", help="REV_A begins the second run, too")
    arguments.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = arguments.parse_args()
    settings = [*SETTINGS, *options.settings]
    with contextlib.ExitStack() as stack:
        out = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        first = read_answers(train(options.first, settings, out))
        second = read_answers(train(options.second, settings, out, options.first if options.resume else None))
    names = [name_of(options.first), name_of(options.second)]
    if options.resume:
        names[1] = f"a run that {names[0]} began and {names[1]} finished"
    sys.exit(print_comparison(names, settings, first, second))


def name_of(revision: str | None) -> str:
    """The short commit hash of a revision, or `checkout`."""
    return "checkout" if revision is None else git("rev-parse", "--short", f"{revision}^{{commit}}")


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


@contextlib.contextmanager
def source_of(revision: str | None) -> Iterator[Path]:
    """A folder with the code of a revision."""
    if revision is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "source"
        git("worktree", "add", "--quiet", "--detach", str(folder), revision)
        try:
            yield folder
        finally:
            git("worktree", "remove", "--force", str(folder))


def train(revision: str | None, settings: list[str], out: Path, begun_at: str | None = None) -> Path:
    """Runs the demo's cross-validation at a revision and returns its run directory.

    Args:
        revision: None for this checkout.
        settings: `KEY=VALUE` each.
        out: folder of the runs.
        begun_at: the revision that begins the run and is terminated in the middle of a fold.
    """
    name = name_of(revision) if begun_at is None else f"{name_of(begun_at)}-{name_of(revision)}"
    home = out.resolve() / f"{name}-{hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"
    run = home / "momkd-demo" / "run"
    if revision is not None and (run / "metrics.json").exists():
        return run
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    began = time.monotonic()
    if begun_at is not None:
        with source_of(begun_at) as source, start(source, home, settings) as process:
            while process.poll() is None and not in_the_middle(run):
                time.sleep(0.1)
            process.terminate()
    with source_of(revision) as source, start(source, home, settings) as process:
        pass
    if process.returncode:
        raise SystemExit(f"{name}: the cross-validation ended with exit code {process.returncode}")
    print(f"{name}: trained in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return run


def start(source: Path, home: Path, settings: list[str]) -> subprocess.Popen[bytes]:
    """Starts the cross-validation of the demo, whose files lie in the home directory."""
    sets = [part for setting in settings for part in ("--set", setting)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"HOME": str(home), "PYTHONPATH": str(source), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "jobs/crossval.py", "--config", "jobs/configs/demo.yaml", *sets]
    return subprocess.Popen(command, cwd=source, env=environment, stdout=subprocess.DEVNULL)


def in_the_middle(run: Path) -> bool:
    """Whether a fold is finished and another has trained a few epochs."""
    unfinished = [file for file in run.glob("fold=*/metrics.jsonl") if not (file.parent / "result.json").exists()]
    finished = list(run.glob("fold=*/result.json"))
    return bool(finished) and any(len(file.read_text().splitlines()) >= 3 for file in unfinished)


def read_answers(run: Path) -> dict[str, dict[str, Any]]:
    """Every answer of a run, by kind and then by file and key."""
    answers: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        file = str(path.relative_to(run))
        if file.startswith("tune/") or path.name in ("provenance.json", "run.yaml"):
            continue
        if path.suffix == ".safetensors":
            answers.setdefault("weights (SHA-256)", {})[file] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.suffix == ".parquet":
            kind = "losses of steps" if path.parent.name == "steps" else "predictions"
            answers.setdefault(kind, {}).update(cells(file, pd.read_parquet(path)))
        elif path.name in ("folds.csv", "genes.csv"):
            answers.setdefault(path.name, {}).update(cells(file, pd.read_csv(path, dtype=str, keep_default_na=False)))
        elif path.suffix == ".json":
            answers.setdefault(path.name, {}).update(figures(file, json.loads(path.read_text())))
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            answers.setdefault(path.name, {}).update(figures(file, lines))
    return answers


def cells(file: str, table: pd.DataFrame) -> dict[str, Any]:
    """Every cell of a table, by `file:row:column`."""
    return {
        f"{file}:{row}:{column}": value
        for column in table.columns
        for row, value in enumerate(table[column].tolist())
        if not str(column).startswith(NOT_ANSWERS)
    }


def figures(key: str, tree: Any) -> dict[str, Any]:
    """Every leaf of a JSON tree that is no sentence, by its dotted key."""
    if isinstance(tree, dict):
        branches = {str(name): value for name, value in tree.items() if not str(name).startswith(NOT_ANSWERS)}
    elif isinstance(tree, list):
        branches = {str(position): value for position, value in enumerate(tree)}
    else:
        return {} if isinstance(tree, str) and " " in tree else {key: tree}
    return {
        leaf: value for name, branch in branches.items() for leaf, value in figures(f"{key}:{name}", branch).items()
    }


def print_comparison(
    names: list[str], settings: list[str], first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]
) -> int:
    """Prints a row for each kind of answer and the first differences; returns the exit code."""
    print(f"\nThe demo with {', '.join(settings)}: {names[0]} against {names[1]}\n")
    print("| answers | compared | only in the first | only in the second | different |")
    print("|---|---|---|---|---|")
    differences: list[str] = []
    for kind in sorted(first.keys() | second.keys()):
        a, b = first.get(kind, {}), second.get(kind, {})
        both = [key for key in a if key in b]
        different = [key for key in both if repr(a[key]) != repr(b[key])]
        only = [[key for key in one if key not in other] for one, other in ((a, b), (b, a))]
        print(f"| {kind} | {len(both):,} | {len(only[0])} | {len(only[1])} | {len(different)} |")
        differences += [f"{key}: {a[key]!r} -> {b[key]!r}" for key in different]
        differences += [f"{key}: only in {name}" for keys, name in zip(only, names, strict=True) for key in keys]
    if not first:
        differences.append("nothing was found to compare")
    print("\n" + ("\n".join(differences[:20]) if differences else "Identical."))
    if len(differences) > 20:
        print(f"... and {len(differences) - 20:,} more")
    return 1 if differences else 0


if __name__ == "__main__":
    main()
