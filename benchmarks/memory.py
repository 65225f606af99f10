"""Measures the memory of a cross-validation over a store much larger than the object store and than any worker.

    python benchmarks/memory.py [--gigabytes 12] [--patches 4000]

It writes twice that much into a temporary folder (TMPDIR), and then samples the memory of every process of the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from generated_cohort import config_of, write_cohort
from table import machine, print_table

OBJECT_STORE_BYTES = 2 * 10**9
EVERY_S = 0.2


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gigabytes", type=float, default=12)
    arguments.add_argument("--patches", type=int, default=4000)
    arguments.add_argument("--width", type=int, default=1536)
    arguments.add_argument("--child", metavar="CONFIG", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        crossval(options.child)
        return
    slides = round(options.gigabytes * 1e9 / (options.patches * options.width * 2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "cohort"
        write_cohort(folder, slides, options.patches, options.width, "float16", chunked=False)
        # a small network, so that the input's memory is measured and not that of a large bag's activations
        config = config_of(
            folder,
            folds={"n": 2},
            model={"hidden": 32},
            train={"epochs": 1, "bags_per_step": 2},
            cluster={"workers": 2, "cpus_per_worker": 0.5},
        )
        path = folder / "config.json"
        path.write_text(json.dumps(config))
        measure(path, folder, slides)


def measure(config: Path, folder: Path, slides: int) -> None:
    began = time.monotonic()
    run = subprocess.Popen([sys.executable, __file__, "--child", str(config)])
    highest: dict[str, tuple[float, float]] = {}
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(run.pid, highest, done))
    watcher.start()
    code = run.wait()
    done.set()
    watcher.join()
    if code:
        raise SystemExit(f"the cross-validation ended with {code}")
    stored = sum(path.stat().st_size for path in (folder / "bags").glob("*.parquet")) / 1e9
    rows = [[name, f"{rss:.2f}", f"{own:.2f}"] for name, (rss, own) in sorted(highest.items())]
    print(machine())
    print_table(
        f"Peak memory over {slides:,} bags, a store of {stored:.1f} GB, {OBJECT_STORE_BYTES / 1e9:.0f} GB of object "
        f"store; ingest and 2 folds with 2 workers in {time.monotonic() - began:.0f} s",
        ["process", "resident, GB", "of it not shared, GB"],
        rows,
    )


def watch(root: int, highest: dict[str, tuple[float, float]], done: threading.Event) -> None:
    """Records the highest resident memory of the processes of each kind below `root`."""
    while not done.wait(EVERY_S):
        for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
            try:
                name, memory = kind_of(process), process.memory_info()
            except psutil.Error:
                continue
            rss, own = memory.rss / 1e9, (memory.rss - memory.shared) / 1e9
            before = highest.get(name, (0.0, 0.0))
            highest[name] = max(before[0], rss), max(before[1], own)


def kind_of(process: psutil.Process) -> str:
    title = " ".join(process.cmdline())
    if "RayTrainWorker" in title:
        return "training worker"
    if "Map(" in title or "MapBatches(" in title:
        return "Ray Data task (ingest)"
    return "driver" if "--child" in title else "other processes of Ray"


def crossval(config: str) -> None:
    """Cross-validates with a small object store; feature files are removed once they are in the bag store."""
    import ray

    from momkd_ray.cohort.folds import make_folds
    from momkd_ray.config.load import load_config
    from momkd_ray.crossval.cross_validate import cross_validate_inputs
    from momkd_ray.progress import ProgressReporter
    from momkd_ray.run.prepare import ensure_store, open_cohort, open_run_inputs

    settings = load_config(config)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(address="local", object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False, logging_level="error")
    with ProgressReporter() as progress:
        cohort = open_cohort(settings, progress)
        ensure_store(settings, cohort, progress)
        shutil.rmtree(settings.features.dir)
        cohort = open_cohort(settings, progress)
        inputs = open_run_inputs(settings, cohort, make_folds(settings, cohort), progress)
        cross_validate_inputs(inputs, progress, own_cluster=True)


if __name__ == "__main__":
    main()
