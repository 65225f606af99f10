"""Heatmaps: tables, grids, GeoJSON and pictures of slides, by one model, several, or those of a run."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support.command_line import outcome
from support.drawn_slides import HEIGHT, PATCH, WIDTH, write_slide
from support.models import card_of, small_model
from support.runs import crossval
from support.slide_images import patch_colour, write_pyramid

from momkd_ray.config.load import Config
from momkd_ray.heatmap import qupath
from momkd_ray.heatmap.colours import Scales, component_colours, round_up
from momkd_ray.heatmap.drawing import Grid
from momkd_ray.heatmap.patches import SlideSummary, read_csv
from momkd_ray.heatmap.qupath import write_geojson
from momkd_ray.model.bundle import save_bundle
from momkd_ray.model.registry import build_model
from momkd_ray.ray_runtime.cluster import Connection


def bundle(folder: Path, name: str = "momkd", seed: int = 0) -> str:
    card = card_of(small_model())
    sizes = card.model.model_copy(update={"name": name})
    torch.manual_seed(seed)
    model = build_model(sizes, card.memory, card.loss, width=card.width, genes=card.genes)
    save_bundle(str(folder), model, card.model_copy(update={"model": sizes}))
    return str(folder)


def write_cohort(folder: Path) -> Path:
    (folder / "features").mkdir()
    for seed, name in enumerate(("a", "b.x", "ü'c")):
        write_slide(folder / "features" / f"{name}.h5", seed=seed, n=40 - 7 * seed)
    bundle(folder / "model")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cohort(tmp_path)


def drawn(folder: Path, *arguments: str, models: tuple[str, ...] = ("model",), out: Path | None = None) -> Path:
    out = out or folder / "out"
    places = [str(folder / model) for model in models]
    assert outcome("heatmap", *places, "--features", str(folder / "features"), "--out", str(out), *arguments) == 0
    return out


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort whose slides are drawn, to be read only."""
    folder = write_cohort(tmp_path_factory.mktemp("cohort"))
    drawn(folder)
    return folder


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str, models: tuple[str, ...] = ()) -> str:
    places = [str(folder / model) for model in models or ("model",)]
    options = ["--features", str(folder / "features"), "--out", str(folder / "out")]
    assert outcome("heatmap", *places, *options, *arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("momkd-ray: ")
    return lines[-1]


def test_every_slide_has_a_table_a_picture_and_tiles(cohort: Path) -> None:
    out = cohort / "out"
    slides = pd.read_csv(out / "slides.csv")
    assert slides["slide_id"].tolist() == ["a", "b.x", "ü'c"]
    assert slides["p_positive"].between(0, 1).all()
    for slide, n in (("a", 40), ("b.x", 33), ("ü'c", 26)):
        table = read_csv(str(out / f"{slide}.csv"))
        assert len(table) == n
        assert table["attention"].sum() == pytest.approx(1, abs=1e-4)
        np.testing.assert_allclose(table["attention_per_mean_patch"], table["attention"] * n, rtol=1e-4)
        assert set(table["component_class"]) <= {"negative", "positive"}
        assert table["component"].between(0, 3).all()
        assert Image.open(out / f"{slide}.png").width > 1000
    components = pd.read_csv(out / "components.csv")
    assert components["patches"].sum() == 40 + 33 + 26
    assert components["share"].sum() == pytest.approx(1)
    assert (out / f"components {re.sub(r'[^0-9A-Za-z]', '_', str(cohort / 'model'))}.png").exists()
    top = pd.read_csv(out / "top_patches.csv")
    assert (top.groupby(["component_class", "component"])["similarity"].diff().dropna() <= 0).all()


def check_geometry(feature: dict[str, object]) -> None:
    """RFC 7946: a linear ring has four or more positions, is closed, and runs counter-clockwise outside."""
    geometry = feature["geometry"]
    assert isinstance(geometry, dict)
    assert set(geometry) == {"type", "coordinates"}
    assert geometry["type"] == "Polygon"
    (ring,) = geometry["coordinates"]
    assert len(ring) >= 4
    assert ring[0] == ring[-1]
    area = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in itertools.pairwise(ring)) / 2
    assert area == PATCH**2


@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
def test_tiles_have_the_ids_of_uuid5_and_only_measurements_that_are_known(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qupath, "_TILES_AT_ONCE", at_once)
    table = pd.DataFrame({"x": [0, 64, 128], "y": [0, 0, 64], "attention_per_mean_patch": [1.0, 2.0, 0.5]})
    table = table.assign(component_class=["5 % low", "high", "high"], component=[0, 1, 0], similarity=[0.1, 0.2, 0.3])
    for name in ("5 % low", "high"):
        table[f"contribution_{name}"] = [0.25, float("nan"), -0.5]
    summary = SlideSummary("ü %s", "p", "m", 0.5, "100 %d", ("5 % low", "high"), 64.0, "", 2, None)
    write_geojson(str(tmp_path / "a.geojson"), table, summary)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    namespace = uuid.uuid5(uuid.NAMESPACE_URL, "momkd-ray/heatmap")
    assert [f["id"] for f in features] == [str(uuid.uuid5(namespace, f"ü %s/{i}")) for i in range(3)]
    assert [len(f["properties"]["measurements"]) for f in features] == [4, 2, 4]
    assert features[2]["properties"]["measurements"]["contribution to 100 %d 5 % low (logit)"] == -0.5
    assert features[0]["properties"]["classification"]["name"] == "100 %d 5 % low: component 0"
    assert features[2]["geometry"]["coordinates"] == [[[128, 64], [192, 64], [192, 128], [128, 128], [128, 64]]]


def test_tiles_are_geojson_with_the_properties_that_qupath_reads(folder: Path) -> None:
    out = drawn(folder, "--slide", "ü'c")
    collection = json.loads((out / "ü'c.geojson").read_text())
    table = read_csv(str(out / "ü'c.csv"))
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(table) == 26
    ids = set()
    for feature, row in zip(collection["features"], table.to_dict("records"), strict=True):
        assert feature["type"] == "Feature"
        ids.add(uuid.UUID(feature["id"]))
        check_geometry(feature)
        assert feature["geometry"]["coordinates"][0][0] == [row["x"], row["y"]]
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert properties["classification"]["name"] == f"PR {row['component_class']}: component {row['component']}"
        assert len(properties["classification"]["color"]) == 3
        assert all(0 <= value <= 255 for value in properties["classification"]["color"])
        assert all(isinstance(value, float | int) for value in properties["measurements"].values())
        assert properties["measurements"]["contribution to PR positive (logit)"] == pytest.approx(
            row["contribution_positive"], rel=1e-4
        )
    assert len(ids) == 26
    script = (out / "import_into_qupath.groovy").read_text()
    assert "'ü\\'c'" in script
    assert script.count("{") == script.count("}")


def test_the_same_call_writes_the_same_bytes(cohort: Path, tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in (cohort / "out").iterdir() if path.is_file()}
    again = drawn(cohort, out=tmp_path)
    assert {path.name: path.read_bytes() for path in again.iterdir() if path.is_file()} == first


def test_a_slide_alone_is_as_in_the_cohort_and_takes_its_colours(cohort: Path, tmp_path: Path) -> None:
    alone = drawn(cohort, "--slide", "b.x", "--scales", str(cohort / "out" / "scales.json"), out=tmp_path)
    for name in ("b.x.csv", "b.x.png"):
        assert (alone / name).read_bytes() == (cohort / "out" / name).read_bytes()
    assert not (alone / "a.csv").exists()


def test_several_models_are_averaged_and_their_components_left_out(folder: Path) -> None:
    bundle(folder / "other", seed=5)
    one, other, both = (
        read_csv(str(drawn(folder, "--slide", "a", models=models) / "a.csv"))
        for models in (("model",), ("other",), ("model", "other"))
    )
    assert "component" not in both.columns
    for column in ("attention", "contribution_positive"):
        np.testing.assert_allclose(both[column], (one[column] + other[column]) / 2, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", ["abmil", "dtfd_mil"])
def test_peers_with_attention_are_drawn_without_components(folder: Path, name: str) -> None:
    out = drawn(folder, "--slide", "a", models=(Path(bundle(folder / name, name)).name,))
    feature = json.loads((out / "a.geojson").read_text())["features"][0]
    assert feature["properties"]["classification"]["name"] in ("PR: for negative", "PR: for positive")
    assert not (out / "components.csv").exists()


def test_patches_are_cut_out_of_a_pyramidal_slide_where_they_lie(folder: Path) -> None:
    (folder / "slides").mkdir()
    write_pyramid(folder / "slides" / "a.tiff", WIDTH, HEIGHT, PATCH)
    out = drawn(folder, "--images", str(folder / "slides"), "--top", "3", "--slide", "a")
    cut = sorted((out / "a tiles").iterdir())
    assert len(cut) == 9
    table = read_csv(str(out / "a.csv")).nlargest(3, "attention")
    first = next(path for path in cut if path.name.startswith("attention_01"))
    x, y = (int(value) for value in re.findall(r"[xy](\d+)", first.stem))
    assert (x, y) == tuple(table.iloc[0][["x", "y"]])
    middle = np.asarray(Image.open(first).convert("RGB"))[64:192, 64:192].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(middle, patch_colour(x // PATCH, y // PATCH), atol=6)


def test_a_flat_picture_serves_as_background(folder: Path) -> None:
    Image.new("RGB", (80, 64), (200, 30, 30)).save(folder / "a.png")
    plain = Image.open(drawn(folder, "--slide", "a") / "a.png").width
    out = drawn(folder, "--slide", "a", "--images", str(folder / "a.png"))
    assert Image.open(out / "a.png").width > plain
    assert not (out / "a tiles").exists()


def test_micrometres_become_pixels_by_the_slide_or_by_the_option(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "features" / "a.h5"
    with h5py.File(path, "w") as file:
        file["feats"] = np.random.default_rng(0).normal(size=(40, 12)).astype("f4")
        file["coords"] = np.stack([np.arange(40) % 10, np.arange(40) // 10], axis=1) * PATCH * 0.25
        file.attrs.update({"unit": "um", "tile_size_um": PATCH * 0.25})
    assert "--mpp" in refused(folder, capsys, "--slide", "a")
    write_pyramid(folder / "a.tiff", WIDTH, HEIGHT, PATCH, mpp=0.25)
    by_slide = read_csv(str(drawn(folder, "--slide", "a", "--images", str(folder / "a.tiff")) / "a.csv"))
    by_option = read_csv(str(drawn(folder, "--slide", "a", "--mpp", "0.25") / "a.csv"))
    for table in (by_slide, by_option):
        np.testing.assert_allclose(table["x"], np.arange(40) % 10 * PATCH, atol=0.1)


def test_what_cannot_be_drawn_is_refused_in_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no slide z" in refused(folder, capsys, "--slide", "z")
    assert "does not exist" in refused(folder, capsys, "--images", str(folder / "none"))
    assert "is one file for 3 slides" in refused(folder, capsys, "--images", str(folder / "features" / "a.h5"))
    assert "scales.json" in refused(folder, capsys, "--scales", str(folder / "features"))
    for name in ("mean_pool", "transmil"):
        bundle(folder / name, name)
        assert "has no attention over patches" in refused(folder, capsys, models=(name,))
    Image.new("RGB", (80, 64)).save(folder / "a.png")
    write_slide(folder / "features" / "a.h5", level0_width=None)
    assert "unknown scale" in refused(folder, capsys, "--slide", "a", "--images", str(folder / "a.png"))
    write_slide(folder / "features" / "a.h5", level0_width=320)
    assert "give the picture of this slide" in refused(
        folder, capsys, "--slide", "a", "--images", str(folder / "a.png")
    )
    write_slide(folder / "features" / "a.h5", n=1, patch_size_level0=None)
    assert "--tile-size" in refused(folder, capsys, "--slide", "a")
    (folder / "a.svs").write_text("no slide")
    write_slide(folder / "features" / "a.h5")
    assert "is no slide" in refused(folder, capsys, "--slide", "a", "--images", str(folder / "a.svs"))


@pytest.mark.parametrize("file", ["geojson", "png"])
def test_a_file_that_cannot_be_written_is_told_in_one_sentence(
    folder: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture and the tiles of a slide are made side by side."""
    (folder / "out" / f"a.{file}").mkdir(parents=True)
    assert f"cannot write {folder / 'out' / f'a.{file}'}" in refused(folder, capsys, "--slide", "a")


def test_the_size_of_patches_is_the_stride_where_no_file_states_it(folder: Path) -> None:
    write_slide(folder / "features" / "a.h5", patch_size_level0=None)
    drawn(folder, "--slide", "a")
    slides = pd.read_csv(folder / "out" / "slides.csv").set_index("slide_id")
    assert slides.loc["a", "tile_px"] == PATCH
    assert slides.loc["a", "tile_px_from"] == "the stride of the patches"


@pytest.mark.parametrize(("edge", "step"), [(64, 64), (64, 48), (100, 37)])
def test_a_grid_paints_every_patch_where_it_lies(edge: int, step: int) -> None:
    x, y = (axis.ravel() * step for axis in np.indices((7, 5)))
    table = pd.DataFrame({"x": x, "y": y, "attention": np.linspace(0, 1, len(x))})
    grid = Grid.over(table, (-edge, -edge, 7 * edge, 6 * edge), edge)
    painted = grid.paint(table, np.full(len(x), 3.0, np.float32))
    covered = np.isfinite(painted)
    assert (painted[covered] == 3).all()
    area = covered.sum() * grid.cell**2
    assert area == pytest.approx((6 * step + edge) * (4 * step + edge) if step < edge else len(x) * edge**2, rel=0.15)
    index = grid.paint_categories(table, np.arange(len(x)))
    assert ((index >= 0) == covered).all()
    assert index.max() == len(x) - 1  # the patch of most attention is never hidden


def test_scales_are_round_and_reread(tmp_path: Path) -> None:
    assert [round_up(value) for value in (0.013, 0.2, 7, float("nan"))] == [0.02, 0.2, 10.0, 1.0]
    scales = Scales(16.0, 0.5)
    scales.write(str(tmp_path / "s.json"))
    assert Scales.read(str(tmp_path / "s.json")) == scales


def test_the_classes_colours_stay_apart_without_red_and_green() -> None:
    """Blue against the other two channels tells the classes apart, which red-green blindness keeps."""
    colours = component_colours(16)
    assert (colours[:16, 2] > colours[:16, 0]).all()
    assert (colours[16:, 2] < colours[16:, 0]).all()
    assert len({tuple(colour) for colour in colours.round(3).tolist()}) == 32


def test_the_verb_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--features", "f", "--out", "o"], ["m", "--features", "f"], ["m", "--run", "r"]):
        assert outcome("heatmap", *arguments) == 2
    capsys.readouterr()


@pytest.mark.slow
def test_the_slides_of_a_run_are_drawn_from_its_store_by_the_fold_that_tests_them(
    tiny_config: Config, ray_cluster: Connection, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(tiny_config.run.dir)
    assert outcome("heatmap", "--run", str(run)) == 1
    assert "no run directory" in capsys.readouterr().err
    crossval(tiny_config)
    (run / "run.yaml").write_text(tiny_config.to_yaml())
    # on the cluster that is connected
    assert outcome("heatmap", "--run", str(run)) == 0
    out = run / "heatmaps"
    slides = pd.read_csv(out / "slides.csv").set_index("slide_id")
    for fold in (0, 1):
        tested = pd.read_parquet(run / f"fold={fold}" / "test_slides.parquet").set_index("slide_id")
        ours = slides.loc[tested.index]
        assert (ours["model"] == f"fold {fold}").all()
        np.testing.assert_allclose(ours["p_positive"], tested["p_positive"], atol=1e-5)
        assert (out / f"components fold_{fold}.png").exists()
    one = str(slides.index[3])
    table = (out / f"{one}.csv").read_bytes()
    # in this process what Ray's tasks wrote
    request.getfixturevalue("no_cluster")
    assert outcome("heatmap", "--run", str(run), "--slide", one, "--out", str(run / "one")) == 0
    assert (run / "one" / f"{one}.csv").read_bytes() == table
    assert outcome("heatmap", "--run", str(run), "--fold", "7") == 1
    assert "no finished fold 7" in capsys.readouterr().err
