"""The checklist TRIPOD+AI (Collins et al. 2024, BMJ 385:e078378), filled in where the run knows the answer."""

from __future__ import annotations

from typing import Any

Item = tuple[str, str, str]

TO_WRITE = "to be written by the authors"


def checklist(known: dict[str, Any]) -> list[Item]:
    """Returns the items as number, topic, and where this page answers it.

    Args:
        known: `patients`, `folds`, `label`, `classes`, `number`, `balanced`, `encoder`, `several_sites`, `excluded`.
    """
    return [*_introduction(), *_data(known), *_analysis(known), *_open_science(), *_results(known), *_discussion()]


def _introduction() -> list[Item]:
    return [
        ("1", "Title: development or evaluation, population, outcome", TO_WRITE),
        ("2", "Abstract (TRIPOD+AI for abstracts)", TO_WRITE),
        ("3a-c", "Background: context, target population, known inequalities", TO_WRITE),
        ("4", "Objectives", "development with internal validation by cross-validation"),
    ]


def _data(known: dict[str, Any]) -> list[Item]:
    two = len(known["classes"]) == 2
    outcome = " against ".join(reversed(known["classes"])) if two else ", ".join(known["classes"])
    if known["number"]:
        outcome = f"a number, in the classes {outcome}"
    left_out = f"{known['excluded']} patients were left out, with reasons: section Patients and excluded.csv"
    return [
        ("5a-b", "Data: sources, dates", f"tables and features named in run.yaml; dates {TO_WRITE}"),
        ("6a-c", "Participants: setting, eligibility, treatments", f"{left_out}; setting {TO_WRITE}"),
        (
            "7",
            "Data preparation",
            "section Methods and run.yaml: features, scaling and choice of genes inside each fold",
        ),
        (
            "8a-c",
            "Outcome: definition, assessors, blinding",
            f"{known['label']}: {outcome}; {TO_WRITE}",
        ),
        ("9a-c", "Predictors: choice, definition, assessors", f"patch features ({known['encoder']}); omics teach only"),
        (
            "10",
            "Sample size",
            f"{known['patients']} patients, all of the tables that can be used; its reasoning {TO_WRITE}",
        ),
        ("11", "Missing data", "patients without omics: section Patients and omics.missing in run.yaml"),
    ]


def _analysis(known: dict[str, Any]) -> list[Item]:
    two = len(known["classes"]) == 2
    output = (
        f"the probability of {known['classes'][1]}, and a call by a threshold chosen on validation patients"
        if two
        else "the probability of each class; the likeliest class is called"
    )
    if known["number"]:
        output = "the number, as the expectation over classes, and the probability of each class"
    sampling = (
        "classes are drawn equally often in training; section Calibration says what that does to probabilities"
        if known["balanced"]
        else "none: every bag is drawn once an epoch"
    )
    return [
        (
            "12a",
            "Use of the data: training, tuning, testing",
            f"{known['folds']} folds by patient, each with a validation set",
        ),
        ("12b", "Handling of predictors", "section Methods and run.yaml"),
        ("12c", "Type of model, building, tuning, internal validation", "section Methods; docs/method.md of momkd-ray"),
        ("12d", "Heterogeneity between clusters", _by_site(known)),
        (
            "12e",
            "Measures of performance",
            f"sections Scores, Discrimination, Calibration{', Decisions' if two else ''}",
        ),
        ("12f", "Model updating", "none"),
        ("12g", "Predictions of the evaluated model", "predictions.parquet; `momkd-ray predict`"),
        ("13", "Class imbalance", sampling),
        ("14", "Fairness", f"`momkd-ray evaluate --subgroups` on further columns; {TO_WRITE}"),
        ("15", "Model output", output),
        ("16", "Training against evaluation", "the same cohort, other patients; differences by fold: Table 1"),
    ]


def _open_science() -> list[Item]:
    return [
        ("17", "Ethical approval", TO_WRITE),
        ("18a-d", "Funding, conflicts, protocol, registration", TO_WRITE),
        ("18e", "Data sharing", TO_WRITE),
        ("18f", "Code sharing", "momkd-ray is open source (Apache-2.0); its version and run.yaml are in this page"),
        ("19", "Patient and public involvement", TO_WRITE),
    ]


def _results(known: dict[str, Any]) -> list[Item]:
    return [
        ("20a", "Flow of participants", "section Patients"),
        ("20b", "Characteristics of participants", "Table 1"),
        ("20c", "Comparison with development data", "not applicable: no external cohort in this run"),
        ("21", "Numbers in each analysis", "section Folds and sites: train, validation and test patients of each fold"),
        ("22", "Full model", "fold=*/model: weights and card of each fold"),
        ("23a", "Performance with intervals, also in subgroups", f"section Scores; {_by_site(known)}"),
        ("23b", "Heterogeneity of performance", "section Folds and sites"),
        ("24", "Results of model updating", "not applicable"),
    ]


def _discussion() -> list[Item]:
    return [
        ("25", "Interpretation", TO_WRITE),
        ("26", "Limitations", f"internal validation only, no training repeated in the intervals; further {TO_WRITE}"),
        (
            "27a-c",
            "Usability: poor inputs, user interaction, next steps",
            f"bad feature files are refused by name; {TO_WRITE}",
        ),
    ]


def _by_site(known: dict[str, Any]) -> str:
    return "results by site: section Folds and sites" if known["several_sites"] else "no site is known to the run"
