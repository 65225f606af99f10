"""Damaged feature files are refused in one sentence that names the file; none is read as something it is not."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support.feature_files import CHUNKINGS, WIDTH, grid, store, values, write_hdf5, write_pt

from momkd_ray.formats.bag import Recipe
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import FileFaultError, Problem

N = 40
HDF5_LAYOUTS = {"trident": "a chunk a patch", "clam": "chunks of 3", "stamp": "contiguous", "released": "gzip"}
PT_LAYOUTS = ("clam", "trident", "released")

Damage = Callable[[Path], Any]


def recipe_of(path: Path) -> Recipe:
    """CLAM's and TRIDENT's `.pt` files have no coordinates."""
    return Recipe(graph="none" if path.suffix == ".pt" and "released" not in path.name else "auto")


def refused(path: Path) -> FileFaultError:
    """The fault of a file, which is told in one line that names it."""
    with pytest.raises(FileFaultError) as caught:
        read_bag(str(path), "slide", recipe_of(path), expected_width=WIDTH)
    assert str(path) in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    return caught.value


def healthy(folder: Path) -> list[Path]:
    """A good file of every layout."""
    files = [write_hdf5(folder / f"{x}.h5", x, values(N), chunking=c) for x, c in HDF5_LAYOUTS.items()]
    files += [write_pt(folder / f"{layout}.pt", layout, values(N)) for layout in PT_LAYOUTS]
    return files


def cut(share: float) -> Damage:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def flip(place: int) -> Damage:
    """Flip one bit of a byte."""

    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << place % 7
        path.write_bytes(content)

    return damage


def marks(path: Path) -> list[int]:
    """Where the words lie by which HDF5 and zip files know their parts."""
    content = path.read_bytes()
    if path.suffix == ".pt":
        directory = content.rindex(b"PK\x01\x02")
        return [0, 1, directory, directory + 1, content.rindex(b"PK\x05\x06"), content.rindex(b"PK\x05\x06") + 3]
    places = [*range(8), content.index(b"SNOD"), content.index(b"HEAP") + 2, content.index(b"TREE") + 3]
    if b"GCOL" in content:
        places.append(content.index(b"GCOL"))
    return places


def one(value: float, n: int = 1, dtype: str = "f4") -> np.ndarray:
    """Features of which n values are this one."""
    features = values(N).astype(dtype)
    features[np.arange(n) * 7, 3] = value
    return features


CONTENT: dict[Problem, list[Any]] = {
    "not finite": [one(np.nan), one(np.inf), one(-np.inf, 5), np.full((N, WIDTH), np.nan), one(1e300, dtype="f8")],
    "constant": [np.zeros((N, WIDTH), "f4"), np.ones((N, WIDTH), "f2"), np.tile(values(1), (N, 1))],
    "empty": [np.zeros((0, WIDTH), "f4"), np.zeros((N, 0), "f4"), np.zeros(0, "f4"), np.zeros((1, 0, WIDTH), "f4")],
    "misshapen": [values(N)[0], np.stack([values(N)] * 2), values(N)[None, None], values(N).astype("i4"), np.ones(())],
    "mixed": [values(N, width=WIDTH + 1), values(N, width=1)],
}
STRINGS = [np.full((N, WIDTH), b"0.5"), np.array([["0.5"] * WIDTH] * N, object)]
COORDS: dict[Problem, list[Any]] = {
    "not finite": [np.full((N, 2), np.nan), np.where(grid(N) == 256, np.inf, grid(N))],
    "misshapen": [
        grid(N)[1:],
        grid(N)[:, :1],
        np.zeros((N, 3), int),
        grid(N).ravel(),
        np.full((N, 2), b"1"),
        grid(N) + 2**31,
        grid(N) * 2**23 - 2**31,
    ],
}
EDGES = [
    np.array([[0], [N]]),
    np.array([[-1], [0]]),
    np.array([[0.5], [1]]),
    np.array([[0.0], [np.nan]]),
    np.zeros((3, 2), int),
    np.zeros((5, 2), int),
    np.zeros(6, int),
    np.full((2, 3), b"1"),
]


def damaged(folder: Path) -> Iterator[tuple[Path, set[Problem]]]:
    """Files that are certainly bad, one after the other, and which problems may be found."""
    for path in healthy(folder):
        whole = path.read_bytes()
        for share in (0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1 - 1 / len(whole)):
            cut(share)(path)
            yield path, {"truncated", "unreadable"} if path.stat().st_size else {"empty"}
            path.write_bytes(whole)
        for place in marks(path):
            flip(place)(path)
            assert path.read_bytes() != whole
            yield path, {"unreadable", "truncated"}
            path.write_bytes(whole)
    for layout, chunking in HDF5_LAYOUTS.items():
        path = folder / f"{layout}.h5"
        name = "feats" if layout == "stamp" else "features"
        for problem, features in ((p, f) for p, kinds in CONTENT.items() for f in kinds):
            yield write_hdf5(path, layout, values(N), changes={name: features}, chunking=chunking), {problem}
        for text in STRINGS:
            yield write_hdf5(path, layout, values(N), changes={name: text}), {"misshapen"}
        yield write_hdf5(path, layout, values(N), changes={name: None, "fetures": values(N)}), {"unreadable"}
        for problem, places in ((p, c) for p, kinds in COORDS.items() for c in kinds):
            yield write_hdf5(path, layout, values(N), changes={"coords": places}), {problem}
        if layout != "released":
            yield write_hdf5(path, layout, values(N), changes={"coords": None}), {"misshapen"}
    for graph in EDGES:
        yield write_hdf5(folder / "released.h5", "released", values(N), changes={"edge_index_k8": graph}), {"misshapen"}
    for problem, features in ((p, f) for p, kinds in CONTENT.items() for f in kinds):
        for layout in PT_LAYOUTS:
            tensor = features if layout == "trident" else torch.as_tensor(features)
            changes = {"features": tensor}
            yield (
                write_pt(folder / f"{layout}.pt", layout, values(N) if layout == "released" else tensor, changes),
                {problem},
            )
    for odd in ([1.0, 2.0], "features", {"a": values(N)}, torch.zeros(N, WIDTH).to_sparse(), [torch.zeros(3)] * 2):
        path = folder / "clam.pt"
        torch.save(odd, path)
        yield path, {"misshapen", "unreadable"}


def test_two_hundred_damaged_files_are_two_hundred_clear_rejections(tmp_path: Path) -> None:
    for path in healthy(tmp_path):
        bag = read_bag(str(path), "slide", recipe_of(path), WIDTH)
        np.testing.assert_array_equal(bag.features, values(N))
    count = 0
    for path, problems in damaged(tmp_path):
        fault = refused(path)
        assert fault.problem in problems, fault
        count += 1
    assert count >= 200


@pytest.mark.parametrize("seed", range(7))
def test_random_damage_is_refused_or_harmless(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = healthy(tmp_path)[seed]
    whole = path.read_bytes()
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            content[place] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            bag = read_bag(str(path), "slide", recipe_of(path), WIDTH)
        except FileFaultError:
            refused(path)
        else:
            assert np.isfinite(bag.features).all()
            assert bag.features.shape == (len(bag.edge_indptr) - 1, WIDTH)
            assert bag.edge_indptr[-1] == len(bag.edge_indices)
            assert bag.coords is None or bag.coords.shape == (bag.n_patches, 2)
            again = read_bag(str(path), "slide", recipe_of(path), WIDTH)  # else it were memory that nobody wrote
            np.testing.assert_array_equal(again.features, bag.features)


def test_what_is_no_feature_file_is_named(tmp_path: Path) -> None:
    for suffix in ("h5", "pt"):
        path = tmp_path / f"a.{suffix}"
        assert refused(path).problem == "missing"
        path.write_text("slide_id,feature\n")
        assert refused(path).problem == "unreadable"
        path.write_bytes(b"")
        assert refused(path).problem == "empty"
        path.unlink()
        path.mkdir()
        assert "is a folder" in str(refused(path))


@pytest.mark.parametrize("chunking", ["a chunk a patch", "narrow chunks", "gzip"])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_values_that_were_never_written_are_not_made_up(tmp_path: Path, chunking: str, libver: str) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=libver) as file:
        store(file, "features", values(9), "<f4", CHUNKINGS[chunking])
        file["features"].resize(14, 0)
        file["coords"] = grid(14)
    assert refused(path).problem == "truncated"
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("features", (9, WIDTH), "f4")
        file["coords"] = grid(9)
    assert refused(path).problem == "truncated"


@pytest.mark.parametrize("kind", ["virtual", "external", "link"])
def test_values_in_other_files_are_not_followed(tmp_path: Path, kind: str) -> None:
    other = write_hdf5(tmp_path / "other.h5", "clam", values(9))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = grid(9)
        if kind == "virtual":
            layout = h5py.VirtualLayout((9, WIDTH), "f4")
            layout[:] = h5py.VirtualSource(other, "features", (9, WIDTH))
            file.create_virtual_dataset("features", layout)
        elif kind == "external":
            file.create_dataset("features", data=values(9), external=[(str(tmp_path / "raw"), 0, 9 * WIDTH * 4)])
        else:
            file["features"] = h5py.ExternalLink(str(other), "features")
    assert "lie in other files" in str(refused(path))


def test_a_filter_that_is_not_installed_is_named(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", "trident", values(9), changes={"features": None})
    with h5py.File(path, "a") as file:
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_chunk((9, WIDTH))
        options.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # Zstandard
        space = h5py.h5s.create_simple((9, WIDTH))
        dataset = h5py.h5d.create(file.id, b"features", h5py.h5t.IEEE_F32LE, space, options)
        dataset.write_direct_chunk((0, 0), bytes(100))
    assert "'features' is compressed by 32015, which is not installed" in str(refused(path))


@pytest.mark.parametrize("target", ["behind the file", "another chunk"])
def test_offsets_out_of_a_damaged_index_are_not_believed(tmp_path: Path, target: str) -> None:
    path = write_hdf5(tmp_path / "a.h5", "trident", values(N), chunking="a chunk a patch")
    chunks: list[Any] = []
    with h5py.File(path) as file:
        file["features"].id.chunk_iter(chunks.append)
    old = chunks[7].byte_offset
    new = chunks[8].byte_offset - 4 if target == "another chunk" else path.stat().st_size - 4
    content = path.read_bytes()
    assert content.count(struct.pack("<Q", old)) == 1
    path.write_bytes(content.replace(struct.pack("<Q", old), struct.pack("<Q", new)))
    assert refused(path).problem == ("unreadable" if target == "another chunk" else "truncated")


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_holes_in_a_file_do_not_send_hdf5_round_in_circles(tmp_path: Path, libver: str) -> None:
    """Blocks of zeros are what a broken copy leaves."""
    path = write_hdf5(tmp_path / "a.h5", "trident", values(N), libver=libver)
    with h5py.File(path, "a", libver=libver) as file:
        file["features"].attrs.update({f"note {i}": "text" for i in range(20)})
    whole = path.read_bytes()
    heap = whole.index(b"GCOL")
    path.write_bytes(whole[: heap + 32] + bytes(64) + whole[heap + 96 :])
    assert "a heap of text is damaged" in str(refused(path))
    if libver == "earliest":
        names = whole.index(b"HEAP")
        free, start = struct.unpack_from("<QQ", whole, names + 16)
        content = bytearray(whole)
        struct.pack_into("<Q", content, start + free, free)
        path.write_bytes(content)
        assert "has a cycle" in str(refused(path))


def test_pickles_run_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    for odd, named in ((Bomb(), "posix.mkdir"), (np.array([Bomb()]), "posix.mkdir"), (np.float32(1), "scalar")):
        torch.save({"features": odd}, tmp_path / "released.pt")
        assert named in str(refused(tmp_path / "released.pt"))
    torch.save(np.array([["a"]], object), tmp_path / "released.pt")
    refused(tmp_path / "released.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("layout", PT_LAYOUTS)
def test_records_that_pytorch_would_not_fill_are_refused(tmp_path: Path, layout: str) -> None:
    path = write_pt(tmp_path / f"{layout}.pt", layout, values(N))
    whole = path.read_bytes()
    first = whole.index(b"PK\x01\x02")
    for offset, value in ((38, 0x10), (10, 8), (20, 1), (42, 0x7F)):  # a folder, deflated, shorter, elsewhere
        content = bytearray(whole)
        content[first + offset + (offset == 42)] = value
        path.write_bytes(content)
        assert refused(path).problem == "unreadable"


def test_features_beyond_the_precision_asked_for_are_refused(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.h5", "trident", one(-7e4, 2))
    assert read_bag(str(path), "slide", Recipe()).features.min() == -7e4
    with pytest.raises(FileFaultError, match=r"the value 70000, too large for float16; set store\.dtype to float32"):
        read_bag(str(path), "slide", Recipe(), dtype="float16")
    with pytest.raises(FileFaultError, match=r"1e\+300, too large for float32; extract it again"):
        read_bag(str(write_hdf5(path, "trident", one(1e300, dtype="f8"), "<f8")), "slide", Recipe())
