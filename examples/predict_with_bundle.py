"""Predicts slides with model bundles: python examples/predict_with_bundle.py FEATURES OUT BUNDLE [BUNDLE ...]

FEATURES is a folder of feature files, OUT a .csv or .parquet file, and a bundle such as momkd-demo/run/fold=0/model.
"""

from __future__ import annotations

import sys

import momkd_ray


def main(features: str, out: str, bundles: list[str]) -> None:
    """Predicts every slide of the folder by the mean of the bundles."""
    model, card = momkd_ray.load_bundle(bundles[0])
    negative, positive = card.classes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{card.label}: {negative} or {positive}, {parameters:,} parameters, features of width {card.width}")
    table = momkd_ray.predict_slides(bundles, features, out)
    print(table.sort_values(f"p_{positive}", ascending=False).to_string(index=False))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
