"""Draws docs/site/rooms.svg from the order of imports in pyproject.toml: python .ci/draw_rooms.py."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "site" / "rooms.svg"
WIDTH, ROW, GAP, MARGIN = 720, 34, 10, 16
PURPOSES = {
    "cli": "verbs",
    "api": "cross_validate, predict_slides",
    "compare": "models on the same folds, leaderboard",
    "evaluate": "external cohorts",
    "report": "page, figures",
    "doctor": "checks of machines",
    "init_config": "a configuration for a folder",
    "export": "archives, ONNX, STAMP",
    "heatmap": "maps of slides, QuPath",
    "predict": "ensembles",
    "statistics": "DeLong, calibration",
    "crossval": "folds, threshold, metrics, search",
    "train": "steps, epochs, checkpoints",
    "model": "network, losses, memory, kernels",
    "audit": "what is wrong with the inputs",
    "run": "run directory and its inputs",
    "bags": "bag store",
    "batches": "epoch plans, shards, prefetch",
    "formats": "feature files to bags",
    "cohort": "tables, omics, genes, folds",
    "synthetic": "the demo's cohort",
    "ray_runtime": "clusters, parallel map",
    "input_faults": "lists of faults",
    "config": "YAML, search spaces",
    "storage": "local, s3://",
    "cli_options": "shared options",
    "errors": "exceptions",
    "progress": "lines",
    "seeds": "derived seeds",
    "credentials": "passwords in URLs",
}


def layers() -> list[list[str]]:
    """The rows of rooms, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[room.strip() for room in row.replace(":", "|").split("|")] for row in rows]


def picture() -> str:
    shapes, y = [], MARGIN
    for row in layers():
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        for position, room in enumerate(row):
            x = MARGIN + position * (width + GAP)
            shapes.append(f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{ROW}" rx="5"/>')
            shapes.append(
                f'<text x="{x + 12:.0f}" y="{y + 22}"><tspan class="name">{room}</tspan>'
                f'<tspan dx="10">{PURPOSES.get(room, "")}</tspan></text>'
            )
        y += ROW + GAP
    note = "A room imports only rooms below it; rooms side by side do not import each other."
    style = (
        "rect{fill:#eef1fb;stroke:#5b6bb5}text{font:13px sans-serif;fill:#333}"
        ".name{font-weight:bold;fill:#1d2a6b}.note{font-style:italic;fill:#777}"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 22}" role="img" aria-label="{note}">',
            f"<style>{style}</style>",
            *shapes,
            f'<text class="note" x="{MARGIN}" y="{y + 12}">{note}</text>',
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(picture())
