"""A figure as inline SVG for a page, and as PNG, SVG and CSV files beside it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cache, cached_property
from typing import Any

import pandas as pd
from markupsafe import Markup, escape
from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure

from momkd_ray import storage

PNG_DPI = 200
# Okabe and Ito's colours, distinct for readers with any colour vision
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"

# for names in scripts that DejaVu Sans lacks, where they are installed; a page's SVG has the viewer's fonts
_OTHER_SCRIPTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Microsoft YaHei"),
    *("PingFang SC", "Hiragino Sans", "Malgun Gothic", "Noto Sans Devanagari", "Noto Sans Thai"),
)

SERIES_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)


@dataclass(frozen=True)
class Ink:
    """The greys of a figure: of lines and text, of less important ones, and of the grid."""

    ink: str
    muted: str
    grid: str


# placeholders that the page's CSS variables replace, and the colours of files on white paper
PAGE_INK = Ink("#010101", "#020202", "#030303")
FILE_INK = Ink("#1b1f24", "#57606a", "#d8dee4")
_VARIABLES = {PAGE_INK.ink: "var(--ink)", PAGE_INK.muted: "var(--muted)", PAGE_INK.grid: "var(--grid)"}


@dataclass(frozen=True)
class Drawing:
    """A figure before it is rendered.

    Attributes:
        name: of its files, and the beginning of its ids in the page.
        caption: one or two sentences under it.
        alt: what it shows, for those who cannot see it.
        draw: makes the figure with the given greys, within the style of this module.
        data: the numbers that are drawn.
    """

    name: str
    caption: str
    alt: str
    draw: Callable[[Ink], Figure]
    data: pd.DataFrame

    @cached_property
    def _svg(self) -> str:
        """The figure as SVG with placeholders for the greys; drawn once for page and file."""
        with rc_context(style(PAGE_INK)):
            return _svg_of(self.draw(PAGE_INK))

    def inline(self) -> Markup:
        """Renders it for a page: text is kept as text, and greys follow light and dark mode."""
        return _inline(self._svg, self.name, self.alt)

    def write(self, folder: str) -> None:
        """Writes `<name>.png`, `<name>.svg` and `<name>.csv` into a folder."""
        with rc_context(style(FILE_INK)), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure = self.draw(FILE_INK)
            stream = io.BytesIO()
            figure.savefig(stream, format="png", facecolor="white", dpi=PNG_DPI)
            storage.write_bytes(storage.join(folder, f"{self.name}.png"), stream.getvalue())
        storage.write_text(storage.join(folder, f"{self.name}.svg"), _on_white(self._svg))
        text = self.data.to_csv(index=False, lineterminator="\n")
        storage.write_text(storage.join(folder, f"{self.name}.csv"), text)


@cache
def _installed_fonts() -> frozenset[str]:
    return frozenset(font_manager.fontManager.get_font_names())


def write_drawings(drawings: Sequence[Drawing], folder: str) -> None:
    """Writes the files of several figures into a folder."""
    for drawing in drawings:
        drawing.write(folder)


def style(ink: Ink) -> dict[str, Any]:
    """Returns matplotlib's settings of a figure in these greys."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "momkd-ray",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", *(font for font in _OTHER_SCRIPTS if font in _installed_fonts())],
        "font.size": 9,
        "text.parse_math": False,  # a class may be called $x
        "text.color": ink.ink,
        "axes.labelcolor": ink.ink,
        "axes.edgecolor": ink.muted,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": ink.grid,
        "grid.linewidth": 0.6,
        "xtick.color": ink.muted,
        "ytick.color": ink.muted,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.constrained_layout.use": True,
    }


def short(name: str) -> str:
    """Shortens a name for an axis or a legend."""
    return name if len(name) <= 24 else name[:23] + "…"


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """Renders a figure to inline SVG whose ids begin with `name`, described by `alt`."""
    return _inline(_svg_of(figure), name, alt)


def _svg_of(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata=_no_metadata())
    return stream.getvalue()


def _on_white(svg: str) -> str:
    """Returns the content of an SVG file: the greys of files, on a white ground."""
    for page, file in zip(astuple(PAGE_INK), astuple(FILE_INK), strict=True):
        svg = svg.replace(page, file)
    first = svg.index(">", svg.index("<svg")) + 1
    return f'{svg[:first]}\n <rect width="100%" height="100%" fill="white"/>{svg[first:]}'


def _inline(svg: str, name: str, alt: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    # matplotlib's ids are unique within a figure, and the page has several
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))


def _no_metadata() -> dict[str, None]:
    return dict.fromkeys(("Creator", "Date", "Format", "Type"))
