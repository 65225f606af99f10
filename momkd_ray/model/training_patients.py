"""The patients that a model learnt from, as salted hashes: a bundle can tell whether it knows one, and names none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property, lru_cache

from momkd_ray.cohort.identifiers import canonical, person
from momkd_ray.config.dotted_keys import Section

# 1,000 patients take half a second; whoever tries all hospital numbers needs as long for each thousand
_ITERATIONS = 1000
_BYTES = 12


class TrainingPatients(Section):
    """Salted hashes of the patients of training and validation, and of their slides.

    Attributes:
        salt: the same for all folds of a run, so that the names of a cohort are hashed once.
        patients, slides: hashes, sorted and divided by blanks.
    """

    salt: str
    patients: str
    slides: str

    @classmethod
    def of(cls, patients: Iterable[str], slides: Iterable[str], salt: str) -> TrainingPatients:
        """Hashes the names of patients and slides.

        >>> known = TrainingPatients.of(["TCGA-A0-1000", "0012"], ["a1"], "salt")
        >>> [known.knows(name) for name in ("TCGA-A0-1000-01Z-00-DX1", "TCGA-A0-1000-DX1", "12", "A1", "a2")]
        [True, True, True, True, False]
        """
        return cls(salt=salt, patients=_hashes(patients, salt), slides=_hashes(slides, salt))

    def knows(self, name: str) -> bool:
        """Returns whether a name is that of a patient or slide of training, however it is spelt."""
        return any(_hash(known, self.salt) in self._known for known in _spellings(name))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(f"{self.patients} {self.slides}".split())


def _hashes(names: Iterable[str], salt: str) -> str:
    return " ".join(sorted({_hash(known, salt) for name in names for known in _spellings(name)}))


def _spellings(name: str) -> set[str]:
    """Returns what one name is known by; two where a text that belongs to no barcode follows a patient's barcode."""
    return {canonical(name), person(name)}


@lru_cache(maxsize=200_000)
def _hash(name: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", name.encode(), salt.encode(), _ITERATIONS, _BYTES).hex()
