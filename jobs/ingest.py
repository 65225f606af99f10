"""`ray job submit ... -- python jobs/ingest.py ...`: feature files -> bag store. The same as `momkd-ray ingest`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the uploaded checkout, where nothing is installed

from momkd_ray.cli import main

if __name__ == "__main__":
    main(["ingest", *sys.argv[1:]])
