"""The comparison as one HTML page with nothing to load."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from momkd_ray import __version__, storage
from momkd_ray.compare.conclusion import conclusions
from momkd_ray.compare.figures import forest_figure, fraction_figure, omics_figure
from momkd_ray.compare.leaderboard import Leaderboard
from momkd_ray.compare.tables import columns, footnotes, lines
from momkd_ray.report.omics import omics_pairs


def write_page(run_dir: str, label: str, leaderboard: Leaderboard) -> str:
    """Writes `compare.html` into the run directory and returns its location."""
    environment = Environment(
        loader=PackageLoader("momkd_ray.compare", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows, pairs = leaderboard.rows, omics_pairs(leaderboard.rows)
    figures: list[dict[str, Any]] = []
    if len(rows) > 1:
        figures.append({"caption": "Differences to the reference", "svg": forest_figure(rows, leaderboard.reference)})
    if pairs:
        figures.append(
            {"caption": "What the omics bought", "svg": omics_figure(pairs), "rem": min(44, 10 + 14 * len(pairs))}
        )
    for key, name in (("label_fraction", "labelled patients"), ("omics_fraction", "patients with omics")):
        if (svg := fraction_figure(rows, key, name)) is not None:
            figures.append({"caption": f"Pooled {rows[0].headline.name} over the fraction of {name}", "svg": svg})
    page = environment.get_template("page.html.jinja").render(
        label=label,
        version=__version__,
        conclusions=conclusions(leaderboard),
        header=columns(leaderboard),
        rows=lines(leaderboard),
        notes=footnotes(leaderboard),
        figures=figures,
    )
    location = storage.join(run_dir, "compare.html")
    storage.write_text(location, page)
    return location
