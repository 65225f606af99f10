"""Times `ingest` of the same feature files on one CPU and on two, in the same run.

python benchmarks/ingest.py [--slides 400] [--patches 1000]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from generated_cohort import write_cohort
from table import machine, print_table

ROUNDS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--slides", type=int, default=400)
    arguments.add_argument("--patches", type=int, default=1000)
    arguments.add_argument("--width", type=int, default=1536)
    arguments.add_argument("--child", nargs=3, metavar=("CPUS", "TABLE", "STORE"), help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        print(json.dumps(timed_ingest(int(options.child[0]), *options.child[1:])))
        return
    with tempfile.TemporaryDirectory() as folder:
        slides = write_cohort(Path(folder) / "cohort", options.slides, options.patches, options.width)
        slides.to_parquet(f"{folder}/slides.parquet")
        runs: dict[int, list[dict[str, float]]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for cpus in runs:
                store = f"{folder}/store"
                command = [sys.executable, __file__, "--child", str(cpus), f"{folder}/slides.parquet", store]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs[cpus].append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(store)
        report(slides, runs)


def timed_ingest(cpus: int, table: str, uri: str) -> dict[str, float]:
    """Returns the seconds of the ingest alone (Ray's workers are warm), and the CPU seconds of this machine."""
    import ray

    from momkd_ray.bags.ingest import ingest
    from momkd_ray.bags.store import StoreFormat

    os.sched_setaffinity(0, range(cpus))  # inherited by all processes that Ray starts
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    slides = pd.read_parquet(table)
    warm = ray.remote(lambda: __import__("momkd_ray.bags.ingest") and time.sleep(1))
    ray.get([warm.remote() for _ in range(cpus)])
    ingest(slides.head(2 * cpus), f"{uri}-warm", StoreFormat("float16", 8, "auto"))
    shutil.rmtree(f"{uri}-warm")
    began, busy = time.perf_counter(), busy_seconds()
    ingest(slides, uri, StoreFormat("float16", 8, "auto"))
    return {"seconds": time.perf_counter() - began, "busy": busy_seconds() - busy}


def busy_seconds() -> float:
    """CPU seconds of all processes since this machine started."""
    user, nice, system = (int(n) for n in Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def report(slides: pd.DataFrame, runs: dict[int, list[dict[str, float]]]) -> None:
    best = {cpus: min(done, key=lambda run: run["seconds"]) for cpus, done in runs.items()}
    megabytes = slides["bytes"].sum() / 1e6
    rows = [
        [
            cpus,
            f"{run['seconds']:.1f}",
            f"{len(slides) / run['seconds']:.0f}",
            f"{megabytes / run['seconds']:.0f}",
            f"{run['busy'] / run['seconds']:.2f}",
            f"{best[1]['seconds'] / run['seconds']:.2f}x",
        ]
        for cpus, run in best.items()
    ]
    print(machine())
    print_table(
        f"ingest of {len(slides):,} TRIDENT files ({megabytes:.0f} MB), best of {ROUNDS}",
        ["CPUs", "s", "slides/s", "MB/s read", "CPUs busy", "against one CPU"],
        rows,
    )


if __name__ == "__main__":
    main()
