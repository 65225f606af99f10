"""Times reading one bag: the store against TRIDENT's own file and a plain memory-mapped Parquet read.

python benchmarks/read.py [--patches 20000] [--width 1536]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from pyarrow import parquet as pq
from table import interleaved, machine, print_table

from momkd_ray.bags.ingest import ingest
from momkd_ray.bags.store import BagStore, StoreFormat
from momkd_ray.batches.collate import collate
from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.ray_runtime.cluster import connect


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--patches", type=int, default=20_000)
    arguments.add_argument("--width", type=int, default=1536)
    arguments.add_argument("--rounds", type=int, default=9)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.patches, options.width, options.rounds)


def measure(folder: Path, patches: int, width: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    features_PD = rng.normal(size=(patches, width)).astype(np.float32)
    side = int(np.ceil(patches**0.5))
    coords_P2 = np.stack(np.divmod(np.arange(patches), side), 1) * 256
    files = {
        "TRIDENT .h5, a chunk a patch, float32": ("f4", True),
        "TRIDENT .h5, a chunk a patch, float16": ("f2", True),
        "contiguous .h5, float16": ("f2", False),
    }
    paths = {}
    for name, (dtype, chunked) in files.items():
        paths[name] = folder / f"{dtype}{chunked}.h5"
        with h5py.File(paths[name], "w") as file:
            chunks = (1, width) if chunked else None
            file.create_dataset("features", data=features_PD.astype(dtype), chunks=chunks)
            file.create_dataset("coords", data=coords_P2, chunks=(1, 2) if chunked else None)
    source = paths["TRIDENT .h5, a chunk a patch, float32"]
    stat = source.stat()
    slides = pd.DataFrame(
        {
            "slide_id": ["slide"],
            "patient_id": ["patient"],
            "path": [str(source)],
            "file": ["unchanged"],
            "bytes": [stat.st_size],
        }
    )
    with connect():
        store, _ = ingest(slides, str(folder / "store"), StoreFormat("float16", 8, "auto"))
    part = folder / "store" / store.slides["part"].iloc[0]

    def by_h5py(path: Path) -> object:
        with h5py.File(path) as file:
            return file["features"][()], file["coords"][()]

    def by_pyarrow() -> object:
        return pq.ParquetFile(part, memory_map=True).read_row_group(0)

    ways = {name: (lambda path=path: by_h5py(path)) for name, path in paths.items()}
    ways["our reader of TRIDENT's float32 file, with its graph"] = lambda: read_bag(str(source), "slide", Recipe())
    ways["plain pyarrow, memory-mapped, the store's part"] = by_pyarrow
    ways["the store, first read by a process (SHA-256 verified)"] = lambda: BagStore.open(store.uri).read("slide")
    ways["the store"] = lambda: store.read("slide")
    ways["the store, and as a float32 batch"] = lambda: collate([store.read("slide")])
    ways["plain pyarrow, and as a float32 batch"] = lambda: torch.from_numpy(
        np.frombuffer(by_pyarrow().column("features").chunk(0).buffers()[2], np.float16).astype(np.float32)
    )
    store.read("slide")
    seconds = interleaved(ways, rounds)
    ours, plain = seconds["the store"], seconds["plain pyarrow, memory-mapped, the store's part"]
    stored_mb = patches * width * 2 / 1e6
    rows = [[name, f"{s * 1e3:.1f}", f"{s / ours:.1f}x", f"{s / plain:.2f}x"] for name, s in seconds.items()]
    print(machine())
    print_table(
        f"One bag of {patches:,} x {width} ({stored_mb:.0f} MB at float16), page cache warm, medians of {rounds}",
        ["read by", "ms", "against the store", "against plain pyarrow"],
        rows,
    )


if __name__ == "__main__":
    main()
