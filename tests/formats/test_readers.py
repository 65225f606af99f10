"""A feature file of any layout becomes exactly the bag it holds; what it lacks is neither guessed nor made up."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.feature_files import (
    CHUNKINGS,
    NEIGHBORS,
    PRECISIONS,
    WIDTH,
    bfloat16_values,
    describe,
    edges,
    grid,
    values,
    write_hdf5,
    write_pt,
)
from support.s3 import FaultyProxy, S3Server

from momkd_ray.errors import RunError
from momkd_ray.formats import arrays, hdf5
from momkd_ray.formats.bag import Bag, Recipe
from momkd_ray.formats.knn_graph import csr_graph, knn_graph
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import FileFaultError

PLAIN = Recipe()
NO_GRAPH = Recipe(graph="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def read(path: Path, recipe: Recipe = PLAIN, **options: Any) -> Bag:
    return read_bag(str(path), "slide", recipe, **options)


def refusal(path: Path, recipe: Recipe = PLAIN, **options: Any) -> str:
    """Why a file is refused, after the name of the problem."""
    with pytest.raises(FileFaultError) as caught:
        read(path, recipe, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return f"{caught.value.problem}: {caught.value.reason}"


def exact(features: np.ndarray, precision: str) -> np.ndarray:
    """What a file of that precision holds."""
    if "bf16" in precision or precision.startswith("raw"):
        return bfloat16_values(features)
    return features.astype("f2" if precision.endswith("f2") else "f4")


def assert_graph_by_coordinates(bag: Bag) -> None:
    indptr, indices = knn_graph(grid(bag.n_patches), NEIGHBORS)
    np.testing.assert_array_equal(bag.edge_indptr, indptr)
    np.testing.assert_array_equal(bag.edge_indices, indices)
    assert bag.edge_indptr.dtype == bag.edge_indices.dtype == np.int32


@settings(max_examples=250)
@given(
    layout=st.sampled_from(["trident", "clam", "stamp", "released"]),
    precision=st.sampled_from(PRECISIONS),
    chunking=st.sampled_from(sorted(CHUNKINGS)),
    n=st.integers(2, 70),
    batched=st.booleans(),
    libver=st.sampled_from(["earliest", "latest"]),
    userblock=st.sampled_from([0, 0, 512]),
)
def test_every_layout_precision_and_chunking_gives_exactly_the_values(
    folder: Path, layout: str, precision: str, chunking: str, n: int, batched: bool, libver: str, userblock: int
) -> None:
    features = values(n, seed=n)
    stored = features[None] if batched else features
    options = {"libver": libver, "userblock_size": userblock}
    bag = read(write_hdf5(folder / "a.h5", layout, stored, precision, chunking, **options))
    expected = exact(features, precision)
    assert bag.features.dtype == expected.dtype
    assert bag.features.flags.c_contiguous
    np.testing.assert_array_equal(bag.features, expected)
    assert_graph_by_coordinates(bag)
    if layout == "released":
        assert bag.coords is None
    else:
        assert bag.coords is not None
        assert bag.coords.dtype == np.int32
        np.testing.assert_array_equal(bag.coords, grid(n) * 125 if layout == "stamp" else grid(n))


@pytest.mark.parametrize("layout", ["clam", "trident", "released"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_tensors_and_pickled_arrays_give_exactly_the_values(
    tmp_path: Path, layout: str, precision: str, batched: bool, zipped: bool
) -> None:
    features = values(11)[None] if batched else values(11)
    if layout == "trident":
        stored: Any = features.astype({"bfloat16": "f2"}.get(precision, precision))
    else:
        stored = torch.from_numpy(features).to(getattr(torch, precision.replace(">f4", "float32")))
    expected = stored.astype("f4") if layout == "trident" else stored.float().numpy()
    path = write_pt(tmp_path / "a.pt", layout, stored, _use_new_zipfile_serialization=zipped)
    bag = read(path, PLAIN if layout == "released" else NO_GRAPH)
    assert bag.features.dtype == (np.float16 if stored.dtype in (np.float16, torch.float16) else np.float32)
    np.testing.assert_array_equal(bag.features, expected.reshape(11, WIDTH))
    assert bag.coords is None
    assert bag.provenance["format"] == layout
    if layout == "released":
        assert_graph_by_coordinates(bag)


def test_a_tensor_in_any_memory_order_is_read_as_it_is_meant(tmp_path: Path) -> None:
    features = torch.from_numpy(values(8, width=9))
    for stored in (features.T.contiguous().T, features.repeat(1, 2)[:, ::2], features.T.bfloat16().contiguous().T):
        bag = read(write_pt(tmp_path / "a.pt", "clam", stored), NO_GRAPH)
        np.testing.assert_array_equal(bag.features, stored.float().numpy())
    bag = read(write_pt(tmp_path / "a.pt", "trident", np.asfortranarray(features.numpy())), NO_GRAPH)
    np.testing.assert_array_equal(bag.features, features.numpy())
    places = {"coords": torch.from_numpy(grid(8)), "edge_index_k8": None}
    bag = read(write_pt(tmp_path / "a.pt", "released", features, places))
    assert_graph_by_coordinates(bag)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("wanted", ["float16", "float32"])
def test_features_come_at_the_precision_that_is_asked_for(tmp_path: Path, precision: str, wanted: Any) -> None:
    features = np.random.default_rng(1).normal(size=(50, WIDTH)).astype("f4")
    path = write_hdf5(tmp_path / "a.h5", "trident", features, precision, "a chunk a patch")
    held = exact(features, precision) if "f8" not in precision else features
    bag = read(path, dtype=wanted)
    assert bag.features.dtype == wanted
    np.testing.assert_array_equal(bag.features, held.astype(wanted))


@pytest.mark.parametrize("slab", [1, 100, 1000, 10**6])
def test_slabs_of_any_size_give_the_same_and_little_more_memory_than_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab: int
) -> None:
    features = values(600, width=300)
    paths = [write_hdf5(tmp_path / f"{c}.h5", "clam", features, chunking=c) for c in ("chunks of 64", "gzip")]
    monkeypatch.setattr(arrays, "SLAB_BYTES", slab)
    for path in paths:
        tracemalloc.start()
        bag = read(path, NO_GRAPH, dtype="float16")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        np.testing.assert_array_equal(bag.features, features)
        assert peak < bag.features.nbytes + 2 * slab + 200_000
    bad = features.copy()
    bad[[17, 599], 5] = np.inf
    assert "NaN or inf in 2 of 600 patches, first in patch 17" in refusal(write_hdf5(paths[0], "clam", bad))


def test_chunks_and_runs_are_read_by_their_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hdf5, "_read_by_hdf5")
    for chunking in ("contiguous", "a chunk a patch", "chunks of 3", "chunks of 64"):
        for precision in PRECISIONS:
            path = write_hdf5(tmp_path / "a.h5", "released", values(20), precision, chunking)
            np.testing.assert_array_equal(read(path).features, exact(values(20), precision))


def test_micrometres_keep_their_fractions(tmp_path: Path) -> None:
    places = np.random.default_rng(3).uniform(0, 60_000, (30, 2)).astype("f4")
    bag = read(write_hdf5(tmp_path / "a.h5", "stamp", values(30), changes={"coords": places}))
    assert bag.provenance["coords_unit"] == "nm"
    np.testing.assert_allclose(bag.coords / 1000, places.astype("f8"), atol=0.0005)
    np.testing.assert_array_equal(bag.edge_indices, knn_graph(np.rint(places.astype("f8") * 1000).astype(int), 8)[1])


@pytest.mark.parametrize(
    ("attributes", "stride", "nanometres"),
    [
        ({"unit": "um"}, 256, 256_000),
        ({"tile_size": 256.0, "unit": "um"}, 256, 256_000),
        ({"tile_size_um": 256.0}, 256, 256_000),
        ({}, 224, 256_000),
        ({}, 224.2, 256_229),
        ({"tile_size": 224, "unit": "px"}, 112, 128_000),
        ({}, 256, None),
        ({"unit": "px", "tile_size_px": 256}, 256, None),
        ({}, 0, None),
    ],
)
def test_units_of_stamp_old_and_new(
    tmp_path: Path, attributes: dict[str, Any], stride: float, nanometres: int | None
) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["patch_embeddings"], file["coords"] = values(9), grid(9) / 256.0 * stride
        describe(file, "", **attributes)
    if nanometres is None:
        assert refusal(path).startswith("misshapen")
    else:
        assert read(path).coords[1].tolist() == [0, nanometres]


def test_embeddings_of_whole_slides_are_no_bags(tmp_path: Path) -> None:
    for kind in ("slide", "patient"):
        path = write_hdf5(tmp_path / "a.h5", "stamp", values(1))
        with h5py.File(path, "a") as file:
            file.attrs["feat_type"] = kind
        assert f"misshapen: {path} holds features of a whole {kind}" in refusal(path)
    assert "has the shape (6,)" in refusal(write_hdf5(path, "trident", values(4)[0]))


def test_the_graph_of_the_file_is_kept_as_it_is(tmp_path: Path) -> None:
    stored = np.array([[3, 0, 0, 3, 1, 0], [2, 1, 1, 0, 1, 3]])
    for dtype in ("i8", "u2", ">i4", "f4"):
        bag = read(
            write_hdf5(tmp_path / "a.h5", "released", values(4), changes={"edge_index_k8": stored.astype(dtype)})
        )
        assert bag.edge_indptr.tolist() == [0, 3, 4, 4, 6]
        assert bag.edge_indices.tolist() == [1, 1, 3, 1, 2, 0]
    indptr, indices = csr_graph(edges(30), 30)
    np.testing.assert_array_equal(np.stack([np.repeat(np.arange(30), np.diff(indptr)), indices]), edges(30))


@pytest.mark.parametrize("where", ["h5", "pt"])
def test_where_the_graph_comes_from(tmp_path: Path, where: str) -> None:
    odd = np.array([[0], [5]])

    def file(**changes: Any) -> Path:
        if where == "h5":
            return write_hdf5(tmp_path / "a.h5", "released", values(9), changes=changes)
        tensors = {name: None if array is None else torch.from_numpy(array) for name, array in changes.items()}
        return write_pt(tmp_path / "a.pt", "released", values(9), tensors)

    assert read(file(edge_index_k8=odd)).edge_indices.tolist() == [5]
    assert read(file(edge_index_k8=odd, coords=grid(9))).edge_indices.tolist() == [5]
    assert_graph_by_coordinates(read(file(edge_index_k8=odd, coords=grid(9)), Recipe(graph="knn")))
    assert_graph_by_coordinates(read(file(edge_index_k8=None, edge_index_k5=odd, coords=grid(9))))
    assert_graph_by_coordinates(read(file(edge_index_k8=odd[:, :0], coords=grid(9))))
    for recipe, changes in ((NO_GRAPH, {}), (NO_GRAPH, {"coords": grid(9)})):
        bag = read(file(**changes), recipe)
        assert (bag.edge_indptr.tolist(), bag.edge_indices.size) == ([0] * 10, 0)
        assert (bag.coords is None) == ("coords" not in changes)
    assert "set store.neighbors to 5" in refusal(file(edge_index_k8=None, edge_index_k5=odd))
    assert "features.graph to auto" in refusal(file(), Recipe(graph="knn"))
    assert "features.graph to none" in refusal(file(edge_index_k8=odd[:, :0]))
    assert "set store.neighbors to 8" in refusal(file(), Recipe(neighbors=5))


def test_one_patch_has_no_edges(tmp_path: Path) -> None:
    for layout in ("trident", "clam", "stamp", "released"):
        bag = read(write_hdf5(tmp_path / "a.h5", layout, values(1)))
        assert (bag.edge_indptr.tolist(), bag.edge_indices.size) == ([0, 0], 0)


def test_only_the_layout_that_is_named_is_read(tmp_path: Path) -> None:
    layouts = ("trident", "clam", "stamp", "released")
    for layout in layouts:
        path = write_hdf5(tmp_path / "a.h5", layout, values(9))
        assert read(path).provenance["format"] == layout
        for named in layouts:
            if named == layout:
                assert read(path, Recipe(format=named)).provenance["format"] == named
            else:
                assert refusal(path, Recipe(format=named)).endswith(
                    f"is of the layout {layout}, not {named}; set features.format to auto"
                )
    for layout, named in (("clam", "trident"), ("trident", "clam")):
        path = write_pt(tmp_path / "a.pt", layout, values(9))
        assert read(path, Recipe(graph="none", format=named)).provenance["format"] == named
    with h5py.File(tmp_path / "plain.h5", "w") as file:  # as CLAM writes it
        file["features"], file["coords"] = values(9), grid(9)
    for named in ("auto", "clam", "trident"):
        assert read(tmp_path / "plain.h5", Recipe(format=named)).coords is not None


def test_provenance_tells_what_the_file_says(tmp_path: Path) -> None:
    def told(path: Path) -> dict[str, str]:
        return read(path, NO_GRAPH).provenance

    path = write_hdf5(tmp_path / "a.h5", "trident", values(9), "<bf16", "a chunk a patch")
    said = {"encoder": "uni_v2", "savetodir": "out", "patch_size_level0": "512", "dtype": "bfloat16"}
    said |= {"format": "trident", "source": str(path), "coords_unit": "level0_px"}
    assert said.items() < told(path).items()
    stamp = write_hdf5(tmp_path / "b.h5", "stamp", values(9), ">f2")
    said = {"encoder": "uni2", "extractor": "uni2", "tile_size_um": "32.0", "dtype": "float16", "coords_unit": "nm"}
    assert said.items() < told(stamp).items()
    clam = write_hdf5(tmp_path / "c.h5", "clam", values(9), "<f8")
    assert {"format": "clam", "dtype": "float64"}.items() < told(clam).items()
    assert "encoder" not in told(clam)
    noted = write_pt(tmp_path / "d.pt", "released", torch.from_numpy(values(9)).bfloat16(), {"model_name": "conch"})
    assert {"encoder": "conch", "format": "released", "dtype": "bfloat16"}.items() < told(noted).items()
    assert "coords_unit" not in told(noted)
    with h5py.File(path, "a") as file:
        file["features"].attrs["encoder"] = "None"
        file.attrs["patch_encoder"] = "gigapath"
    assert told(path)["encoder"] == "gigapath"


@pytest.mark.parametrize("suffix", ["h5", "pt"])
@pytest.mark.parametrize("layout", ["clam", "released"])
def test_trouble_of_the_network_is_no_fault_of_the_file(
    tmp_path: Path,
    s3_server: S3Server,
    s3_proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    layout: str,
) -> None:
    monkeypatch.setenv("MOMKD_RAY_S3_PATIENCE_S", "0.5")
    path, name = tmp_path / f"a.{suffix}", f"a.{suffix}"
    if suffix == "h5":
        write_hdf5(path, layout, values(30), chunking="a chunk a patch")
    else:
        write_pt(path, layout, values(30))
    s3_server.client.upload_file(str(path), s3_server.bucket, name)
    place = f"{s3_server.uri}/{name}"
    here, there = read(path, NO_GRAPH), read_bag(place, "slide", NO_GRAPH)
    np.testing.assert_array_equal(there.features, here.features)
    np.testing.assert_array_equal(there.edge_indices, here.edge_indices)
    requests = s3_proxy.count(path=name)
    assert requests <= 3, "the file is fetched whole"
    for spared in range(requests):
        s3_proxy.inject("reset", path=name, spared=spared)
        with pytest.raises(RunError, match=place):
            read_bag(place, "slide", NO_GRAPH)
        s3_proxy.heal()
    s3_server.client.delete_object(Bucket=s3_server.bucket, Key=name)
    with pytest.raises(FileFaultError, match="there is no feature file"):
        read_bag(place, "slide", NO_GRAPH)
