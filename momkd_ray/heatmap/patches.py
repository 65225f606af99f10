"""The table of a slide's patches with their attention, contributions and components, from which maps are drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from momkd_ray import storage
from momkd_ray.formats.bag import Bag
from momkd_ray.input_faults import FileFaultError
from momkd_ray.model.explain import Explanation

CONTRIBUTION = "contribution_"
SCALED = "contribution_per_mean_patch_"
_STRIDE_SAMPLE = 4_000  # patches whose distances are compared to find the stride of the grid


@dataclass(frozen=True)
class SlideSummary:
    """What is known of a slide besides its patches.

    Attributes:
        slide_id, patient_id: identifiers.
        model: the fold whose model explained the slide (`fold=0`), or `given models`.
        probability: of the `shown_class`, for the bag.
        label, classes: the user's names; of two classes, the positive one is the second.
        tile_px: edge of a patch in level-0 pixels.
        tile_from: where that is from, in words.
        components: K, memory components of each class; 0 without a memory.
        level0_size: width and height of the slide in level-0 pixels, if the feature file states it.
        probabilities: of more than two classes, those of all, for the bag.
    """

    slide_id: str
    patient_id: str
    model: str
    probability: float
    label: str
    classes: tuple[str, ...]
    tile_px: float
    tile_from: str
    components: int
    level0_size: tuple[int, int] | None
    probabilities: tuple[float, ...] = ()

    @property
    def shown_class(self) -> str:
        """The class whose probability is shown: the positive one or, of more than two, the likeliest."""
        return self.classes[1] if len(self.classes) == 2 else self.classes[int(np.argmax(self.probabilities))]

    def to_json(self) -> dict[str, object]:
        """Returns plain values for a JSON file."""
        return asdict(self)


def patch_table(
    xy_P2: NDArray[np.float64], explanation: Explanation, classes: Sequence[str], patches_of_bag: int
) -> pd.DataFrame:
    """Returns one row per patch, in the bag's order.

    Args:
        xy_P2: left and top edges in level-0 pixels.
        explanation: of the slide's patches.
        classes: names of the classes.
        patches_of_bag: the patches that the attention sums to 1 over: of the slide, or of all slides of the patient.

    Returns:
        `x, y, attention, attention_per_mean_patch` (times the bag's patches: 1 is average), for each class
        `contribution_<class>` and the same times the bag's patches, and with a memory `component_class, component,
        similarity`.
    """
    whole = bool((xy_P2 == np.rint(xy_P2)).all())
    x_P, y_P = (xy_P2.astype(np.int64) if whole else xy_P2).T
    columns: dict[str, NDArray[np.generic]] = {
        "x": x_P,
        "y": y_P,
        "attention": explanation.attention_P,
        "attention_per_mean_patch": explanation.attention_P * np.float32(patches_of_bag),
    }
    for y, name in enumerate(classes):
        columns[f"{CONTRIBUTION}{name}"] = explanation.contribution_PY[:, y]
    for y, name in enumerate(classes):
        columns[f"{SCALED}{name}"] = explanation.contribution_PY[:, y] * np.float32(patches_of_bag)
    if explanation.component_P is not None and explanation.similarity_P is not None:
        names = np.array(classes, dtype=object)
        columns["component_class"] = names[explanation.component_P // explanation.components]
        columns["component"] = explanation.component_P % explanation.components
        columns["similarity"] = explanation.similarity_P
    return pd.DataFrame(columns)


def write_csv(location: str, table: pd.DataFrame) -> None:
    """Writes the table of a slide's patches as CSV."""
    with storage.atomic_writer(location) as stream:
        csv.write_csv(pa.Table.from_pandas(table, preserve_index=False), stream)


def read_csv(location: str) -> pd.DataFrame:
    """Reads what `write_csv` wrote."""
    text = csv.ConvertOptions(column_types={"component_class": pa.string()}, strings_can_be_null=False)
    table: pd.DataFrame = csv.read_csv(io.BytesIO(storage.read_bytes(location)), convert_options=text).to_pandas()
    return table


def positions(bag: Bag, mpp: float | None) -> NDArray[np.float64]:
    """Returns the patches' left and top edges (P, 2) in level-0 pixels.

    Args:
        bag: of one slide.
        mpp: micrometres per level-0 pixel, for coordinates in nanometres.

    Raises:
        FileFaultError: the slide has no coordinates, or needs `mpp`.
    """
    if bag.coords is None:
        raise FileFaultError(
            "missing value",
            f"slide {bag.slide_id} has no coordinates, so its patches have no place on a map: give feature files with "
            "coordinates",
        )
    xy_P2 = bag.coords.astype(np.float64)
    if bag.provenance.get("coords_unit") != "nm":
        return xy_P2
    if mpp is None:
        raise FileFaultError(
            "missing value",
            f"slide {bag.slide_id} has coordinates in micrometres (STAMP), which are drawn in level-0 pixels: "
            "give --mpp, the micrometres per level-0 pixel, or --images with the slides",
        )
    return xy_P2 / (1000 * mpp)


def tile_size(bag: Bag, xy_P2: NDArray[np.float64], mpp: float | None, given: float | None) -> tuple[float, str]:
    """Finds the edge of a patch in level-0 pixels.

    Args:
        bag: of one slide.
        xy_P2: its patches in level-0 pixels.
        mpp: micrometres per level-0 pixel.
        given: what the user says.

    Returns:
        The edge, and where it is from.

    Raises:
        FileFaultError: the feature file does not say, and the slide has one patch.
    """
    if given is not None:
        return given, "--tile-size"
    attributes = bag.provenance
    if (size := _number(attributes, "patch_size_level0")) is not None:
        return size, "patch_size_level0 in the feature file"
    if (um := _number(attributes, "tile_size_um")) is not None and mpp is not None:
        return um / mpp, "tile_size_um in the feature file"
    if (stride := _stride(xy_P2)) > 0:
        return stride, "the stride of the patches"
    raise FileFaultError(
        "missing value",
        f"the size of the patches of slide {bag.slide_id} is unknown: its feature file does not state it "
        "(patch_size_level0), and its patches show no stride; give --tile-size in level-0 pixels",
    )


def level0_size(attributes: Mapping[str, str]) -> tuple[int, int] | None:
    """Returns width and height of the slide in level-0 pixels, if its feature file states them."""
    width, height = _number(attributes, "level0_width"), _number(attributes, "level0_height")
    return None if width is None or height is None else (int(width), int(height))


def _number(attributes: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(attributes[name])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _stride(xy_P2: NDArray[np.float64]) -> float:
    """Returns the smallest positive distance between rows or columns that is common; 0 if there is none."""
    best = 0.0
    for axis in (0, 1):
        lines = np.unique(xy_P2[:_STRIDE_SAMPLE, axis])
        gaps = np.diff(lines)
        if len(gaps):
            smallest = float(np.median(gaps))
            best = smallest if best == 0 else min(best, smallest)
    return best
