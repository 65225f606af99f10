"""Colours and scales of heatmaps: colour-blind safe, and the same for every slide of a call.

Classes are blue and orange, which all common colour deficiencies keep apart; memory components of a class differ in
lightness, and every legend gives their numbers too.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from momkd_ray import storage
from momkd_ray.errors import InputError

if TYPE_CHECKING:
    from matplotlib.colors import Normalize

ATTENTION_MAP = "cividis"
CONTRIBUTION_MAP = "PuOr_r"
_CLASS_MAPS = ("Blues", "Oranges", "Greens", "Purples", "Reds", "Greys")
_LIGHTEST, _DARKEST = 0.30, 1.0
ATTENTION_RANGE = 16.0  # a patch's attention is shown from 1/16 to 16 times the mean patch's

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Scales:
    """The ranges of the colours.

    Attributes:
        attention: the largest attention shown, in times the mean patch's; the smallest is its inverse.
        contribution: the largest contribution shown, either way, in logits times patches.
    """

    attention: float
    contribution: float

    def attention_norm(self) -> Normalize:
        """Returns the logarithmic scale of attention."""
        from matplotlib.colors import LogNorm

        return LogNorm(1 / self.attention, self.attention, clip=True)

    def contribution_norm(self) -> Normalize:
        """Returns the symmetric scale of contributions."""
        from matplotlib.colors import Normalize

        return Normalize(-self.contribution, self.contribution, clip=True)

    def write(self, location: str) -> None:
        """Writes the scales, which `read` reads for slides of a later call."""
        storage.write_json(location, asdict(self))

    @classmethod
    def read(cls, location: str) -> Scales:
        """Reads scales.

        Raises:
            InputError: there is no such file, or it holds no scales.
        """
        try:
            tree: Any = storage.read_json(location)
            scales = cls(float(tree["attention"]), float(tree["contribution"]))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise InputError(f"--scales {location} is no file: name the scales.json of an earlier call") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"--scales {location} holds no scales: name the scales.json of an earlier call") from error
        if not (scales.attention > 1 and scales.contribution > 0):
            raise InputError(f"--scales {location}: attention must be above 1 and contribution above 0; correct them")
        return scales


def round_up(value: float) -> float:
    """Rounds up to 1, 2 or 5 times a power of ten; 1 for anything that is not above 0.

    >>> [round_up(x) for x in (0.013, 3, 5, 0)]
    [0.02, 5.0, 5.0, 1.0]
    """
    if not (math.isfinite(value) and value > 0):
        return 1.0
    exponent = math.floor(math.log10(value))
    step = next(s for s in (1, 2, 5, 10) if s * 10.0**exponent >= value * (1 - 1e-9))
    return float(f"{step}e{exponent}")


def component_colour(y: int, k: int, components: int) -> Rgb:
    """Returns the colour of component k of class y: the class's hue, darker with k."""
    share = 1.0 if components == 1 else k / (components - 1)
    return _shade(y, _LIGHTEST + share * (_DARKEST - _LIGHTEST))


def side_colour(y: int) -> Rgb:
    """Returns the colour of a class."""
    return _shade(y, 0.7)


def component_colours(components: int, classes: int = 2) -> NDArray[np.float64]:
    """Returns the colours (Y K, 3) of all components, between 0 and 1, those of class 0 first."""
    return np.array([component_colour(y, k, components) for y in range(classes) for k in range(components)]) / 255


def _shade(y: int, darkness: float) -> Rgb:
    from matplotlib import colormaps

    red, green, blue = (round(255 * value) for value in colormaps[_CLASS_MAPS[y % len(_CLASS_MAPS)]](darkness)[:3])
    return red, green, blue
