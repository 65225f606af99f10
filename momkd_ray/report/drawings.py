"""A figure as inline SVG for a page, and as PNG, SVG and CSV files beside it."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


# greys of lines and text, of less important ones, and of the grid: on white paper, and as variables of a page's CSS
INK, MUTED, GRID = "#1b1f24", "#57606a", "#d8dee4"
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}


@dataclass(frozen=True)
class Drawing:
    """A figure before it is rendered.

    Attributes:
        name: of its files, and the beginning of its ids in the page.
        caption: one or two sentences under it.
        alt: what it shows, for those who cannot see it.
        draw: makes the figure, within the style of this module.
        data: the numbers that are drawn.
    """

    name: str
    caption: str
    alt: str
    draw: Callable[[], Figure]
    data: pd.DataFrame

    @cached_property
    def _svg_and_png(self) -> tuple[str, bytes]:
        """The figure in both formats; drawn and laid out once for all its files and the page."""
        with rc_context(style()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure = self.draw()
            svg = _svg_of(figure)
            figure.set_layout_engine("none")
            stream = io.BytesIO()
            figure.savefig(stream, format="png", facecolor="white", dpi=PNG_DPI)
        return svg, stream.getvalue()

    def inline(self) -> Markup:
        """Renders it for a page: text is kept as text, and greys follow light and dark mode."""
        return _inline(self._svg_and_png[0], self.name, self.alt)

    def write(self, folder: str) -> None:
        """Writes `<name>.png`, `<name>.svg` and `<name>.csv` into a folder."""
        svg, png = self._svg_and_png
        storage.write_bytes(storage.join(folder, f"{self.name}.png"), png)
        storage.write_text(storage.join(folder, f"{self.name}.svg"), _on_white(svg))
        text = self.data.to_csv(index=False, lineterminator="\n")
        storage.write_text(storage.join(folder, f"{self.name}.csv"), text)


@cache
def _installed_fonts() -> frozenset[str]:
    return frozenset(font_manager.fontManager.get_font_names())


def write_drawings(drawings: Sequence[Drawing], folder: str) -> None:
    """Writes the files of several figures into a folder."""
    for drawing in drawings:
        drawing.write(folder)


def style() -> dict[str, Any]:
    """Returns matplotlib's settings of a figure."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "momkd-ray",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", *(font for font in _OTHER_SCRIPTS if font in _installed_fonts())],
        "font.size": 9,
        "text.parse_math": False,  # a class may be called $x
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "grid.linewidth": 0.6,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
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
    """Returns the content of an SVG file: the figure on a white ground."""
    first = svg.index(">", svg.index("<svg")) + 1
    return f'{svg[:first]}\n <rect width="100%" height="100%" fill="white"/>{svg[first:]}'


def _inline(svg: str, name: str, alt: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    # matplotlib's ids are unique within a figure, and the page has several
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for grey, variable in _VARIABLES.items():
        svg = svg.replace(grey, variable)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1))


def _no_metadata() -> dict[str, None]:
    return dict.fromkeys(("Creator", "Date", "Format", "Type"))
