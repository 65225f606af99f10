"""Times reading and checking a wide omics table, and choosing its genes as in one fold.

python benchmarks/genes.py [--genes 20000] [--patients 1000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from table import machine, print_table

from momkd_ray.cohort.genes import fit_genes
from momkd_ray.cohort.omics import read_omics
from momkd_ray.config.sections import GenesConfig


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--genes", type=int, default=20_000)
    arguments.add_argument("--patients", type=int, default=1000)
    options = arguments.parse_args()
    rng = np.random.default_rng(0)
    y_N = rng.integers(0, 2, options.patients)
    values_NG = np.exp2(rng.normal(5, 2, (options.patients, options.genes)).clip(0))
    values_NG[:, : options.genes // 10] *= np.exp2(0.5 * y_N)[:, None]
    patients = [f"P{i:04d}" for i in range(options.patients)]
    frame = pd.DataFrame(values_NG.round(3), columns=[f"G{i:05d}" for i in range(options.genes)])
    frame.insert(0, "PATIENT", patients)
    rows = []

    def timed(name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        rows.append([name, f"{time.perf_counter() - began:.1f}"])

    with tempfile.TemporaryDirectory() as name:
        frame.to_parquet(f"{name}/rna.parquet", index=False)
        frame.to_csv(f"{name}/rna.csv", index=False)
        for path in sorted(Path(name).iterdir()):
            timed(f"read and check {path.suffix}", lambda path=path: read_omics(str(path), None, patients))
        omics = read_omics(f"{name}/rna.parquet", None, patients).values
    for select in ("variance", "anova", "xgboost"):
        timed(
            f"choose 768 by {select}", lambda select=select: fit_genes(omics, y_N, GenesConfig(select=select), seed=1)
        )
    print(machine())
    print_table(f"{options.genes:,} genes x {options.patients:,} patients", ["", "s"], rows)


if __name__ == "__main__":
    main()
