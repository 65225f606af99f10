"""`ray job submit ... -- python jobs/predict.py ...`: histology alone. The same as `momkd-ray predict`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the uploaded checkout, where nothing is installed

from momkd_ray.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
