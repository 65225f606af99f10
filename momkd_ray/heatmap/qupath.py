"""Patches as GeoJSON tiles that QuPath opens, and a script that imports them into all slides of a QuPath project.

QuPath (0.4 and later) reads from a feature's properties `objectType`, `name`, `color`, `classification` (`name`,
`color`) and `measurements`, an object of numbers, and takes a UUID as `id`. Its coordinates are level-0 pixels, y
downwards, not the longitudes and latitudes of RFC 7946.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from hashlib import sha1

import numpy as np
import pandas as pd

from momkd_ray import storage
from momkd_ray.heatmap.colours import Rgb, component_colour, side_colour
from momkd_ray.heatmap.patches import CONTRIBUTION, SlideSummary

SCRIPT = "import_into_qupath.groovy"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "momkd-ray/heatmap")


def class_names(table: pd.DataFrame, summary: SlideSummary) -> tuple[list[str], dict[str, Rgb]]:
    """Names the QuPath class of each patch, and the colour of each class.

    With a memory it is the nearest component; without one, the class that the patch speaks for.
    """
    if "component" in table.columns:
        pairs = list(zip(table["component_class"], table["component"].tolist(), strict=True))
        colours = {
            f"{summary.label} {name}: component {k}": component_colour(y, k, summary.components)
            for y, name in enumerate(summary.classes)
            for k in range(summary.components)
        }
        return [f"{summary.label} {name}: component {k}" for name, k in pairs], colours
    # a tie is for the first of the classes
    for_P = np.nan_to_num(table[[f"{CONTRIBUTION}{name}" for name in summary.classes]].to_numpy()).argmax(axis=1)
    names = [f"{summary.label}: for {summary.classes[y]}" for y in for_P]
    return names, {f"{summary.label}: for {name}": side_colour(y) for y, name in enumerate(summary.classes)}


def write_geojson(location: str, table: pd.DataFrame, summary: SlideSummary) -> None:
    """Writes the patches of a slide as a FeatureCollection of square tiles."""
    names, colours = class_names(table, summary)
    classification = {
        name: json.dumps({"name": name, "color": list(rgb)}, ensure_ascii=False) for name, rgb in colours.items()
    }
    measured = [
        ("attention (1 = mean patch)", table["attention_per_mean_patch"].to_numpy()),
        *(
            (f"contribution to {summary.label} {name} (logit)", table[f"{CONTRIBUTION}{name}"].to_numpy())
            for name in summary.classes
        ),
    ]
    if "component" in table.columns:
        measured.append(("similarity to component (cosine)", table["similarity"].to_numpy()))
    keys = [json.dumps(key, ensure_ascii=False) for key, _ in measured]
    values_PM = np.stack([column for _, column in measured], axis=1).astype(np.float64)
    left_P, top_P = table["x"].to_numpy(), table["y"].to_numpy()
    edge = int(summary.tile_px) if float(summary.tile_px).is_integer() else summary.tile_px
    corners = zip(*(v.tolist() for v in (left_P, top_P, left_P + edge, top_P + edge)), strict=True)
    known_PM = ~np.isnan(values_PM)  # NaN is no JSON: the measurement of a patch that has none is left out
    code_P = (known_PM @ (1 << np.arange(len(keys)))).tolist()
    templates: dict[tuple[str, int], str] = {}
    features = []
    rows = zip(tile_ids(summary.slide_id, len(names)), corners, names, code_P, values_PM.tolist(), strict=True)
    for tile_id, (left, top, right, bottom), name, code, values_M in rows:
        known = [value for value in values_M if value == value]
        if (template := templates.get((name, code))) is None:
            own_keys = [key for place, key in enumerate(keys) if code >> place & 1]
            template = templates[name, code] = _template(classification[name], own_keys)
        ring = (left, top, right, top, right, bottom, left, bottom, left, top)
        features.append(template % (tile_id, *ring, *known))
    text = '{"type": "FeatureCollection", "features": [\n' + ",\n".join(features) + "\n]}\n"
    storage.write_text(location, text)


def tile_ids(slide_id: str, count: int) -> Iterator[str]:
    """Yields the UUID of each tile of a slide: version 5 of `slide/number` in this program's namespace.

    The same as `uuid.uuid5`, in a fifth of its time: the hash of the beginning is computed once.
    """
    beginning = sha1(_NAMESPACE.bytes + f"{slide_id}/".encode(), usedforsecurity=False)
    for i in range(count):
        whole = beginning.copy()
        whole.update(b"%d" % i)
        h = whole.hexdigest()
        yield f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:32]}"


def _template(classification: str, keys: Sequence[str]) -> str:
    """Returns the format of a tile; its ring runs counter-clockwise as RFC 7946 wants it, and is closed."""
    measurements = ", ".join(f"{key.replace('%', '%%')}: %.6g" for key in keys)
    return (
        '{"type": "Feature", "id": "%s", "geometry": {"type": "Polygon", "coordinates": '
        "[[[%s, %s], [%s, %s], [%s, %s], [%s, %s], [%s, %s]]]}, "
        f'"properties": {{"objectType": "tile", "classification": {classification.replace("%", "%%")}, '
        f'"measurements": {{{measurements}}}}}}}'
    )


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
