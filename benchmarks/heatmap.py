"""Times `momkd-ray heatmap` of one large slide: seconds of the clock and of the CPU, and those of the CPU by stage.

    python benchmarks/heatmap.py [--before CHECKOUT] [--patches 100000] [--rounds 5]

The slide is a TRIDENT file of random float32 features with one chunk a patch; the model is the default network with
random components. The outputs are the default ones: CSV, PNG, GeoJSON, and the picture and tables of components. The
clock and all CPU seconds are those of the command as a user runs it, from the start of its process to the end. The
stages are measured in another process, by the thread that each runs in. On a machine that does other things too, CPU
seconds say more than the clock. `--before` is a checkout of another version, with the same environment.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from table import machine, print_table

HERE = str(Path(__file__).parents[1])
COLUMNS = 400  # of the grid that the patches lie on
PATCH_LEVEL0 = 512
STAGES = {
    "reading and checking the file": [("heatmap.sources", "read_bag")],
    "the batch": [("heatmap.explain_bag", "collate")],
    "the network": [("model.component_momkd", "ComponentMoMKD.readout"), ("heatmap.explain_bag", "explain")],
    "CSV, written and read": [("heatmap.explain_bag", "write_csv"), ("heatmap.draw", "read_csv")],
    "PNG": [("heatmap.draw", "draw_slide"), ("heatmap.slide_files", "draw_slide")],
    "GeoJSON": [("heatmap.qupath", "write_geojson")],
    "components": [("heatmap.explain_bag", "_components"), ("heatmap.draw", "write_components")],
}
"""The functions of each stage, by module and name within the package; a version need not have all."""
IMPORTED = ("heatmap.draw", "heatmap.slide_files", "heatmap.sources", "model.registry", "model.component_momkd")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", metavar="CHECKOUT", help="a checkout of another version")
    arguments.add_argument("--patches", type=int, default=100_000)
    arguments.add_argument("--width", type=int, default=1024)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--stages", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.stages:
        run_in_stages(options.stages)
        return
    print(machine())
    print(f"load averages {os.getloadavg()}")
    versions = {"before": options.before, "now": HERE} if options.before else {"now": HERE}
    with tempfile.TemporaryDirectory() as name:
        command = prepare(Path(name), options.patches, options.width)
        measured: dict[str, list[dict[str, float]]] = {version: [] for version in versions}
        for _ in range(options.rounds):
            for version, checkout in versions.items():
                total = timed(command, checkout)
                print(f"{version}: {total['the clock']:.2f} s, {total['all CPU']:.2f} CPU s", flush=True)
                measured[version].append(stages(command, checkout) | total)
    rows = [
        [stage, *(f"{statistics.median(times[stage] for times in measured[v]):.2f}" for v in versions)]
        for stage in next(iter(measured.values()))[0]
    ]
    title = f"Seconds for a slide of {options.patches:,} patches, medians of {options.rounds} turns"
    print_table(title, ["", *versions], rows)


def prepare(folder: Path, patches: int, width: int) -> list[str]:
    """Writes a slide and a model; returns the command."""
    from generated_model import save_model  # imports PyTorch, whose time is measured in the process of the verb

    features = folder / "features"
    features.mkdir()
    rng = np.random.default_rng(0)
    cells = np.sort(rng.permutation(patches * 5 // 4)[:patches])
    with h5py.File(features / "slide.h5", "w") as file:
        stored = file.create_dataset("features", (patches, width), "f4", chunks=(1, width))
        for start in range(0, patches, 5_000):
            rows = min(5_000, patches - start)
            stored[start : start + rows] = rng.standard_normal((rows, width), dtype=np.float32)
        file["coords"] = np.stack([cells % COLUMNS, cells // COLUMNS], axis=1) * PATCH_LEVEL0
        file["coords"].attrs["patch_size_level0"] = PATCH_LEVEL0
    save_model(str(folder / "model"), width)
    return ["heatmap", str(folder / "model"), "--features", str(features), "--out", str(folder / "out")]


def timed(command: list[str], checkout: str) -> dict[str, float]:
    """Runs the verb; returns the seconds of the clock, and those of the CPU."""
    cpu_s, began = cpu_of_children(), time.monotonic()
    run(["-m", "momkd_ray.cli", "--quiet", *command], checkout)
    clock_s = time.monotonic() - began
    return {"all CPU": cpu_of_children() - cpu_s, "the clock": clock_s}


def stages(command: list[str], checkout: str) -> dict[str, float]:
    """Runs the verb; returns its CPU seconds by stage."""
    seconds: dict[str, float] = json.loads(run([__file__, "--stages", *command], checkout).splitlines()[-1])
    return seconds


def run(arguments: list[str], checkout: str) -> bytes:
    """Runs Python with the code of a checkout; returns its output."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join((checkout, str(Path(__file__).parent)))
    finished = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=checkout, stdout=subprocess.PIPE, check=True
    )
    return finished.stdout


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run_in_stages(command: list[str]) -> None:
    """Runs the verb in this process, and prints the CPU seconds of its stages."""
    from momkd_ray import cli

    gc.disable()  # as the command does while it imports them
    for module in IMPORTED:
        with suppress(ModuleNotFoundError):
            importlib.import_module(f"momkd_ray.{module}")
    gc.enable()
    seconds = {"start and imports": time.process_time()} | dict.fromkeys(STAGES, 0.0)
    for stage, functions in STAGES.items():
        for module, name in functions:
            with suppress(ModuleNotFoundError, AttributeError):
                measure(importlib.import_module(f"momkd_ray.{module}"), name, stage, seconds)
    try:
        cli.main(["--quiet", *command])
    except SystemExit as end:
        if end.code:
            raise
    print(json.dumps(seconds))


def measure(holder: Any, name: str, stage: str, seconds: dict[str, float]) -> None:
    """Adds the CPU seconds of a function's calls to those of its stage."""
    *classes, name = name.split(".")
    for part in classes:
        holder = getattr(holder, part)
    function = getattr(holder, name)

    @functools.wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[stage] += time.thread_time() - began

    setattr(holder, name, measured)


if __name__ == "__main__":
    main()
