"""Runs `momkd-ray crossval` as a Ray job: all folds, metrics, report.

ray job submit ... -- python jobs/crossval.py ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package is uploaded with the checkout, not installed

from momkd_ray.cli import main

if __name__ == "__main__":
    main(["crossval", *sys.argv[1:]])
