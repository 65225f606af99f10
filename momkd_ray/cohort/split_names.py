"""Finds the patients that a split names, by their own names or those of their slides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from momkd_ray.cohort.cohort import Cohort
from momkd_ray.cohort.columns import is_named_after_patients, slide_columns
from momkd_ray.cohort.identifiers import Matching, match_identifiers, nearest
from momkd_ray.cohort.slide_names import folder_and_name, slide_id_of
from momkd_ray.cohort.table_files import texts
from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError
from momkd_ray.input_faults import Kind


@dataclass(frozen=True, eq=False)
class NamedPatients:
    """The patients that the names in a split mean.

    Attributes:
        kind: whether most of them name patients or slides.
        ids: name as written -> patient or slide.
        owners: name as written -> patient, of those that are in the cohort.
        understood: how they were matched.
    """

    kind: Kind
    ids: Mapping[str, str]
    owners: Mapping[str, str]
    understood: tuple[Understood, ...]


@dataclass(frozen=True, eq=False)
class SplitNames:
    """The names of patients and slides that a split may use.

    Attributes:
        patients: of the cohort, and of those that it leaves out.
        owners: slide -> its patient; '' for the slides that the cohort leaves out.
        cohort: the patients of the cohort alone.
    """

    patients: frozenset[str]
    owners: Mapping[str, str]
    cohort: frozenset[str]

    @classmethod
    def of(cls, cohort: Cohort) -> SplitNames:
        """Returns the names of a cohort."""
        left_out = list(zip(cohort.excluded["kind"], cohort.excluded["id"], strict=True))
        left_out += [(fault.kind, fault.id) for fault in cohort.rejected]
        inside = frozenset(str(name) for name in cohort.patients.index)
        patients = inside | {name for kind, name in left_out if kind == "patient"}
        owners = dict.fromkeys((name for kind, name in left_out if kind == "slide"), "")
        owners |= dict(zip(cohort.slides["slide_id"], cohort.slides["patient_id"], strict=True))
        return cls(patients, owners, inside)

    def is_name(self, text: str) -> bool:
        """Returns whether a text is a patient or slide as written, apart from a slide's suffix."""
        return text in self.patients or _slide(text) in self.owners

    def column(self, frame: pd.DataFrame, path: str) -> str:
        """Returns the column of a table that names the most patients or slides; of equal ones that of patients.

        Raises:
            InputError: none names any.
        """
        names = [str(name) for name in frame.columns]
        patients, slides = [name for name in names if is_named_after_patients(name)], slide_columns(names)
        usual = [*patients, *slides]
        shares = {name: self._share(texts(frame[name])) for name in names}
        others = [name for name in names if name not in usual]
        for candidates, least in ((patients, 0.5), (slides, 0.5), (usual, 0.0), (others, 0.0)):
            best = max(candidates, key=lambda name: shares[name], default="")
            if best and shares[best] > 0 and shares[best] >= least:
                return best
        if len(usual) == 1 or len(names) == 1:
            return usual[0] if usual else names[0]
        cells = [cell for name in names for cell in texts(frame[name])[:3] if cell is not None]
        near = nearest(cells, sorted(self.patients | set(self.owners)))
        hint = (
            f"'{near[0]}' is nearest to '{near[1]}'" if near else f"its columns are {', '.join(map(repr, names[:12]))}"
        )
        raise InputError(
            f"{path} has no column that names the patients or slides of the cohort ({hint}): write them as in the "
            "clinical table or the table of slides"
        )

    def _share(self, cells: Iterable[str | None]) -> float:
        names = {cell for cell in cells if cell is not None}
        found = max(len(self._as_patients(names).own), len(self._as_slides(names).own))
        return found / max(1, len(names))

    def _as_patients(self, names: Iterable[str]) -> Matching:
        return match_identifiers(names, self.patients)

    def _as_slides(self, names: Iterable[str]) -> Matching:
        return match_identifiers({_slide(name) for name in names}, self.owners, barcodes=False)

    def resolve(self, written: Iterable[str], location: str) -> NamedPatients:
        """Finds the patients that names mean; those of patients and of slides may not both be meant.

        Raises:
            InputError: all names are patients and slides at once, but slides of other patients.
        """
        names = list(dict.fromkeys(written))
        as_patients, as_slides = self._as_patients(names), self._as_slides(names)
        patient_of = {name: as_patients.own[name] for name in names if name in as_patients.own}
        slide_of = {name: as_slides.own[_slide(name)] for name in names if _slide(name) in as_slides.own}
        both = [name for name in patient_of if name in slide_of]
        differ = [name for name in both if self.owners[slide_of[name]] not in ("", patient_of[name])]
        if len(patient_of) == len(slide_of) and differ:
            raise InputError(
                f"{location}: '{differ[0]}' is a patient, and a slide of patient '{self.owners[slide_of[differ[0]]]}': "
                "give a table with columns of patients and slides, or name patients only"
            )
        kind: Kind = "slide" if len(slide_of) > len(patient_of) else "patient"
        ids, owners = dict[str, str](), dict[str, str]()
        for name in names:
            patient, slide = patient_of.get(name), slide_of.get(name)
            if slide is not None and (kind == "slide" or patient is None):
                ids[name] = slide
                owners[name] = self.owners[slide]
            elif patient is not None:
                ids[name] = owners[name] = patient
            else:
                ids[name] = _slide(name) if kind == "slide" else name
        matching = as_slides if kind == "slide" else as_patients
        return NamedPatients(
            kind, ids, {name: own for name, own in owners.items() if own}, tuple(matching.understood(location, kind))
        )


def _slide(name: str) -> str:
    return slide_id_of(folder_and_name(name)[1])
