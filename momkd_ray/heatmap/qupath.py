"""Patches as GeoJSON tiles that QuPath opens, and a script that imports them into all slides of a QuPath project.

QuPath (0.4 and later) reads from a feature's properties `objectType`, `name`, `color`, `classification` (`name`,
`color`) and `measurements`, an object of numbers, and takes a UUID as `id`. Its coordinates are level-0 pixels, y
downwards, not the longitudes and latitudes of RFC 7946.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from momkd_ray import storage
from momkd_ray.heatmap.colours import Rgb, component_colour, side_colour
from momkd_ray.heatmap.patches import CONTRIBUTION, SlideSummary

SCRIPT = "import_into_qupath.groovy"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "momkd-ray/heatmap")
_TILES_AT_ONCE = 10_000  # 5 MB of text, which stay in the processor's cache
_SEPARATOR = ",\n"
_HEX_DIGITS = np.frombuffer(bytes(range(256)).hex().encode(), np.uint8).reshape(256, 2)
_HEX_PLACES = [place for place in range(36) if place not in (8, 13, 18, 23)]


def patch_classes(table: pd.DataFrame, summary: SlideSummary) -> tuple[NDArray[np.int64], dict[str, Rgb]]:
    """Returns the index of the QuPath class of each patch, and the classes by name with their colours.

    With a memory it is the nearest component; without one, the class that the patch speaks for.
    """
    if "component" in table.columns:
        colours = {
            f"{summary.label} {name}: component {k}": component_colour(y, k, summary.components)
            for y, name in enumerate(summary.classes)
            for k in range(summary.components)
        }
        y_P = table["component_class"].map({name: y for y, name in enumerate(summary.classes)}).to_numpy(np.int64)
        return y_P * summary.components + table["component"].to_numpy(np.int64), colours
    # a tie is for the first of the classes
    for_P = np.nan_to_num(table[[f"{CONTRIBUTION}{name}" for name in summary.classes]].to_numpy()).argmax(axis=1)
    return for_P, {f"{summary.label}: for {name}": side_colour(y) for y, name in enumerate(summary.classes)}


def write_geojson(location: str, table: pd.DataFrame, summary: SlideSummary) -> None:
    """Writes the patches of a slide as a FeatureCollection of square tiles."""
    class_P, colours = patch_classes(table, summary)
    classification = [
        json.dumps({"name": name, "color": list(rgb)}, ensure_ascii=False) for name, rgb in colours.items()
    ]
    columns = {"attention (1 = mean patch)": "attention_per_mean_patch"} | {
        f"contribution to {summary.label} {name} (logit)": f"{CONTRIBUTION}{name}" for name in summary.classes
    }
    if "component" in table.columns:
        columns["similarity to component (cosine)"] = "similarity"
    edge = int(summary.tile_px) if float(summary.tile_px).is_integer() else summary.tile_px
    ids = tile_ids(summary.slide_id, len(table))
    with storage.atomic_writer(location) as stream:
        stream.write(b'{"type": "FeatureCollection", "features": [\n')
        for start in range(0, len(table), _TILES_AT_ONCE):
            part = slice(start, start + _TILES_AT_ONCE)
            x_Q, y_Q = (table[name].to_numpy()[part] for name in ("x", "y"))
            measured = {key: table[column].to_numpy(np.float64)[part] for key, column in columns.items()}
            class_Q = pa.array(classification).take(pa.array(class_P[part]))
            text = memoryview(_tiles(ids[part], _ring(x_Q, y_Q, edge), class_Q, _measurements(measured)))
            stream.write(text if start else text[len(_SEPARATOR) :])
        stream.write(b"\n]}\n")


def _tiles(ids: pa.StringArray, rings: pa.StringArray, classes: pa.StringArray, measured: pa.StringArray) -> pa.Buffer:
    """Returns the text of tiles, each after a separator; the columns are joined by Arrow, several times faster."""
    tiles = compute.binary_join_element_wise(
        f'{_SEPARATOR}{{"type": "Feature", "id": "',
        ids,
        '", "geometry": {"type": "Polygon", "coordinates": [[',
        rings,
        ']]}, "properties": {"objectType": "tile", "classification": ',
        classes,
        ', "measurements": {',
        measured,
        "}}}",
        "",
    )
    return tiles.buffers()[2]


def _ring(left_P: NDArray[Any], top_P: NDArray[Any], edge: float) -> pa.StringArray:
    """Returns the ring of each tile, which runs counter-clockwise as RFC 7946 wants it, and is closed."""
    left, top, right, bottom = (
        pa.array(values_P).cast(pa.string()) for values_P in (left_P, top_P, left_P + edge, top_P + edge)
    )
    corners = ((left, top), (right, top), (right, bottom), (left, bottom), (left, top))
    parts = [part for x, y in corners for part in (", [", x, ", ", y, "]")]
    return compute.binary_join_element_wise("[", *parts[1:], "")


def _measurements(measured: Mapping[str, NDArray[np.float64]]) -> pa.StringArray:
    """Returns the measurements of each tile; NaN is no JSON, so one that a patch has not is left out."""
    texts = []
    for key, values_P in measured.items():
        numbers = pa.array([f"{value:.6g}" for value in values_P.tolist()], pa.string(), mask=np.isnan(values_P))
        texts.append(compute.binary_join_element_wise(f"{json.dumps(key, ensure_ascii=False)}: ", numbers, ""))
    return compute.binary_join_element_wise(*texts, ", ", null_handling="skip")


def tile_ids(slide_id: str, count: int) -> pa.StringArray:
    """Returns the UUID of each tile of a slide: version 5 of `slide/number` in this program's namespace.

    The same as `uuid.uuid5`, in a tenth of its time: the hash of the beginning is computed once, and all are written
    as text together.
    """
    beginning = sha1(_NAMESPACE.bytes + f"{slide_id}/".encode(), usedforsecurity=False)
    digests = bytearray()
    for i in range(count):
        whole = beginning.copy()
        whole.update(b"%d" % i)
        digests += whole.digest()
    bytes_P16 = np.frombuffer(digests, np.uint8).reshape(count, -1)[:, :16].copy()
    bytes_P16[:, 6] = 0x50 | bytes_P16[:, 6] & 0x0F
    bytes_P16[:, 8] = 0x80 | bytes_P16[:, 8] & 0x3F
    text_P36 = np.full((count, 36), ord("-"), np.uint8)
    text_P36[:, _HEX_PLACES] = _HEX_DIGITS[bytes_P16].reshape(count, 32)
    offsets = np.arange(0, 36 * count + 1, 36, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text_P36))


def write_script(location: str, slides: Sequence[str]) -> None:
    """Writes the script that imports the tiles of all slides into the open QuPath project.

    Args:
        location: the file, beside the `.geojson` files.
        slides: names of the slides that have one.
    """
    names = ",\n".join(f"    {_groovy(slide)}" for slide in slides)
    storage.write_text(location, _SCRIPT.replace("SLIDES", names))


def _groovy(text: str) -> str:
    """Quotes a text as a Groovy string in single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_SCRIPT = """\
// Imports the tiles of momkd-ray into every image of the open QuPath project (0.4 or later) that is named as a slide.
// Open the project, then Automate > Script editor, open this file where it lies, and run it (not "Run for project").
// Tiles that are there already are replaced; other objects stay. Measure > Show measurement maps colours them.
import qupath.lib.io.PathIO
import static qupath.lib.gui.scripting.QPEx.*

def slides = [
SLIDES
]
def folder = getCurrentScriptFile().getParentFile()
def project = getProject()
if (project == null) {
    println 'Open a QuPath project first.'
    return
}
def imported = [] as Set
for (entry in project.getImageList()) {
    def image = entry.getImageName()
    def slide = slides.find { image == it || image.replaceFirst(/(\\.ome)?\\.[^.]+$/, '') == it }
    if (slide == null) {
        println "No tiles for ${image}"
        continue
    }
    def imageData = entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    hierarchy.removeObjects(hierarchy.getDetectionObjects().findAll { it.isTile() }, false)
    def tiles = PathIO.readObjects(new File(folder, slide + '.geojson'))
    hierarchy.addObjects(tiles)
    entry.saveImageData(imageData)
    imageData.getServer().close()
    imported.add(slide)
    println "${image}: ${tiles.size()} tiles"
}
println "${imported.size()} of ${slides.size()} slides imported"
(slides - imported).each { println "No image for ${it}" }
"""
