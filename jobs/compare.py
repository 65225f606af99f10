"""Runs `momkd-ray compare` as a Ray job: several models on the same folds, and their leaderboard.

ray job submit ... -- python jobs/compare.py ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package is uploaded with the checkout, not installed

from momkd_ray.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
