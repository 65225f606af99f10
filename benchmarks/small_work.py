"""Times small commands, of this checkout and of another version in turns: seconds of the clock, and of all CPUs.

    python benchmarks/small_work.py [--before CHECKOUT] [--crossval CONFIG] [--rounds 2]

It predicts 6 slides with one model, audits 24, and cross-validates the configuration that is given, with no cluster
running. CPU seconds are those of all processes of a command, sampled; on a machine that does other things too they say
more than the clock. `--before` is a checkout of another version, with the same environment.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from generated_model import save_model
from table import machine, print_table

from momkd_ray.config.load import Config
from momkd_ray.config.sections import SyntheticConfig
from momkd_ray.synthetic.cohort import generate_cohort

EVERY_S = 0.1
HERE = str(Path(__file__).parents[1])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", metavar="CHECKOUT", help="a checkout of another version")
    arguments.add_argument("--crossval", metavar="CONFIG", help="a configuration; its run.dir is replaced")
    arguments.add_argument("--only", choices=["small", "crossval"], help="leave the others out")
    arguments.add_argument("--rounds", type=int, default=2)
    options = arguments.parse_args()
    print(machine())
    print(f"load averages {os.getloadavg()}")
    versions = {"before": options.before, "now": HERE} if options.before else {"now": HERE}
    with tempfile.TemporaryDirectory() as name:
        commands = {} if options.only == "crossval" else small_commands(Path(name))
        if options.crossval and options.only != "small":
            commands["crossval"] = ["crossval", "--config", options.crossval]
        rows = [row_of(what, command, versions, Path(name), options.rounds) for what, command in commands.items()]
    print_table("Seconds, medians of turns", [*rows[0]], [row.values() for row in rows])


def small_commands(folder: Path) -> dict[str, list[str]]:
    """Makes a model and cohorts of 6 and 24 slides, of 50 patches each."""
    commands = {}
    for slides in (6, 24):
        place = folder / str(slides)
        generate_cohort(SyntheticConfig(dir=str(place), patients=24, patches=50, width=256, genes=100, seed=1))
        files = sorted((place / "features").iterdir())
        for file in files[slides:] if slides == 6 else ():
            file.unlink()
    save_model(str(folder / "model"), 256)
    out = ["--out", str(folder / "p.csv")]
    commands["predict, 6 slides"] = ["predict", str(folder / "model"), "--features", str(folder / "6/features"), *out]
    cohort = folder / "24"
    config = Config.model_validate(
        {
            "cohort": {
                "clinical": str(cohort / "clinical.csv"),
                "slides": str(cohort / "slides.csv"),
                "omics": str(cohort / "rna.parquet"),
                "label": "LABEL",
            },
            "features": {"dir": str(cohort / "features")},
            "folds": {"n": 2},
            "run": {"dir": str(folder / "run")},
        }
    )
    (folder / "c.yaml").write_text(config.to_yaml())
    commands["audit, 24 patients"] = ["audit", "--config", str(folder / "c.yaml"), "--on-error", "skip"]
    return commands


def row_of(what: str, command: list[str], versions: dict[str, str], folder: Path, rounds: int) -> dict[str, str]:
    measured: dict[str, list[tuple[float, float]]] = {version: [] for version in versions}
    for round_ in range(rounds):
        for version, checkout in versions.items():
            own = [f"run.dir={folder / f'{version}-{round_}'}"] if command[0] == "crossval" else []
            measured[version].append(timed([*command, *(part for value in own for part in ("--set", value))], checkout))
            print(
                f"{what}, {version}: {measured[version][-1][0]:.1f} s, {measured[version][-1][1]:.1f} CPU s", flush=True
            )
    medians = {
        version: [statistics.median(column) for column in zip(*m, strict=True)] for version, m in measured.items()
    }
    row = {"": what}
    for version, (clock, cpu) in medians.items():
        row |= {f"{version}, s": f"{clock:.1f}", f"{version}, CPU s": f"{cpu:.1f}"}
    if "before" in medians:
        ratios = [now / before for now, before in zip(medians["now"], medians["before"], strict=True)]
        row |= {"ratio": f"{ratios[0]:.2f}", "ratio of CPU s": f"{ratios[1]:.2f}"}
    return row


def timed(command: list[str], checkout: str) -> tuple[float, float]:
    """Runs a verb; returns its seconds and the CPU seconds of all its processes."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
    }
    began = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "momkd_ray.cli", "--quiet", *command],
        env=environment | {"PYTHONPATH": checkout},
        cwd=checkout,
        stdout=subprocess.DEVNULL,
    )
    root, seconds = psutil.Process(run.pid), dict[tuple[int, float], float]()
    while run.poll() is None:
        try:
            for process in (root, *root.children(recursive=True)):
                times = process.cpu_times()
                seconds[process.pid, process.create_time()] = times.user + times.system
        except psutil.Error:
            pass
        time.sleep(EVERY_S)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
    return time.monotonic() - began, sum(seconds.values())


if __name__ == "__main__":
    main()
