"""Finds the patient of each sample of the omics."""

from __future__ import annotations

from collections.abc import Iterable

from momkd_ray.cohort.identifiers import Matching, match_identifiers


class Samples:
    """Looks up the patient of the cohort to whom a sample belongs, as `match_identifiers` does."""

    def __init__(self, patients: Iterable[str]) -> None:
        self.patients = frozenset(patients)
        self._found: dict[str, str | None] = {}

    def of(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the samples of the cohort's patients, each with its patient."""
        asked = list(dict.fromkeys(names))
        unknown = [name for name in asked if name not in self._found]
        if unknown:
            own = self.matching(unknown).own
            self._found |= {name: own.get(name) for name in unknown}
        return {name: patient for name in asked if (patient := self._found[name]) is not None}

    def patient(self, name: str) -> str | None:
        """Returns the patient of a sample; None if it is of nobody in the cohort."""
        return self.of([name]).get(name)

    def matching(self, names: Iterable[str]) -> Matching:
        """Matches samples with the patients and tells how."""
        return match_identifiers(names, sorted(self.patients))
