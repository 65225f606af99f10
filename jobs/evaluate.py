"""Runs `momkd-ray evaluate` as a Ray job: the models of a run on an external, labelled cohort.

ray job submit ... -- python jobs/evaluate.py ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package is uploaded with the checkout, not installed

from momkd_ray.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
