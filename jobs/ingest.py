"""Runs `momkd-ray ingest` as a Ray job: feature files to bag store.

ray job submit ... -- python jobs/ingest.py ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the package is uploaded with the checkout, not installed

from momkd_ray.cli import main

if __name__ == "__main__":
    main(["ingest", *sys.argv[1:]])
