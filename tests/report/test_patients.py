"""Who was in the run: what the report says of the patients."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from support.finished_runs import write_run

from momkd_ray.report.finished_run import read_finished_run
from momkd_ray.report.patients import described
from momkd_ray.run.layout import RunDirectory


def test_every_slide_of_a_patient_counts_also_in_a_bag_of_all(tmp_path: Path) -> None:
    run = read_finished_run(RunDirectory(write_run(tmp_path)))
    own = run.slides.groupby("patient_id")["slide_id"].nunique()
    assert set(own) == {1, 2}
    assert described(run)["slides"].to_dict() == own.to_dict()
    by_patient = run.slides.groupby(["patient_id", "fold"], as_index=False)
    bags = by_patient.agg({"slide_id": ", ".join, "label": "first", "p_negative": "mean", "p_positive": "mean"})
    tree = run.tree | {"cohort": run.tree["cohort"] | {"bag": "patient"}}
    joint = dataclasses.replace(run, slides=bags, tree=tree)
    assert described(joint)["slides"].to_dict() == own.to_dict()
