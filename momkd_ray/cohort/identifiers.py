"""Matches the identifiers of one table with those of another, however both spell them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from momkd_ray.cohort.understood import Understood
from momkd_ray.errors import InputError

Way = Literal["as written", "spelling", "number", "barcode"]

_WAYS: dict[Way, str] = {
    "spelling": "apart from case and separators",
    "number": "as numbers, apart from leading zeros and decimals",
    "barcode": "by the part of their barcodes that names the patient",
}
# project, tissue source site or tumour code, participant; then sample type and vial, portion, plate, centre
_PATIENT = r"((?:TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})|(?:TARGET-\d\d-[A-Z0-9]{6}))"
_BARCODE = re.compile(_PATIENT + r"(?:-(\d\d)[A-Z]?(?:-.*)?)?")
_BEGINS_WITH_BARCODE = re.compile(_PATIENT + r"(?:-.*)?")
_NUMBER = re.compile(r"\d+(?:\.0*)?|\d(?:\.\d+)?[eE]\+?\d+")
_SEPARATORS = re.compile(r"[\s._\-\u2010-\u2015]+")
_TUMOURS = [f"0{digit}" for digit in range(1, 10)]
_SUSPICIOUS = 0.05  # share of identifiers that begin with a patient's, from which it is no coincidence


@dataclass(frozen=True, eq=False)
class Matching:
    """Identifiers of a table, and those of the other table that they mean.

    Attributes:
        own: identifier of this table -> identifier of the other, for those that match exactly one.
        ways: how each of them matches.
        unmatched: identifiers without a counterpart, in order.
        others: number of the other table's identifiers.
    """

    own: Mapping[str, str]
    ways: Mapping[str, Way]
    unmatched: tuple[str, ...]
    others: int

    @property
    def share(self) -> float:
        """The larger share, of this table's identifiers or of the other's, that have a counterpart."""
        found = len(self.own), len(set(self.own.values()))
        return max(found[0] / max(1, found[0] + len(self.unmatched)), found[1] / max(1, self.others))

    def of(self, way: Way) -> list[str]:
        """Returns the identifiers that match in this way."""
        return [name for name, own in self.ways.items() if own == way]

    def understood(self, location: str, kind: str = "patient") -> list[Understood]:
        """Describes each way other than as written, with its count and an example."""
        entries = []
        for way, words in _WAYS.items():
            names = self.of(way)
            if not names:
                continue
            count = f"1 {kind} is" if len(names) == 1 else f"{len(names):,} {kind}s are"
            what = f"{count} matched {words}, such as '{names[0]}' with '{self.own[names[0]]}'"
            entries.append(Understood(location, "identifiers", what, len(names)))
        normal = [name for name in self.of("barcode") if is_normal(name)]
        if normal:
            what = f"{len(normal):,} of them are samples of normal tissue, such as '{normal[0]}'"
            entries.append(Understood(location, "identifiers", what, len(normal), warning=True))
        return entries


def match_identifiers(foreign: Iterable[str], own: Iterable[str], *, barcodes: bool = True) -> Matching:
    """Finds for each identifier of a table the only one of another table that it can mean.

    Tried in this order: the same text; the same but for case and separators; the same number (`00001`, `1`, `1.0`);
    barcodes of TCGA and TARGET that name the same patient and no different samples. One that could mean two identifiers
    means none.

    Args:
        foreign: identifiers of the table.
        own: identifiers of the other table, such as the clinical table's patients.
        barcodes: whether samples of a patient mean that patient; false for names of slides.

    >>> match_identifiers(["1.0", "7", "x"], ["00001", "00002", "X"]).own
    {'1.0': '00001', 'x': 'X'}
    >>> match_identifiers(["TCGA-A0-1000-01A-11R-A12P-07"], ["TCGA-A0-1000"]).own
    {'TCGA-A0-1000-01A-11R-A12P-07': 'TCGA-A0-1000'}
    """
    names, others = list(dict.fromkeys(foreign)), list(dict.fromkeys(own))
    levels: list[tuple[Way, Callable[[str], Hashable | None]]] = [("spelling", spelling), ("number", number)]
    found: dict[str, str] = {name: name for name in set(others).intersection(names)}
    ways: dict[str, Way] = dict.fromkeys(found, "as written")
    for way, key in levels:
        keyed = _by_key(others, key)
        for name in names:
            possible = keyed.get(key(name), []) if name not in found else []
            if len(possible) == 1:
                found[name], ways[name] = possible[0], way
    if barcodes:
        keyed = _by_key(others, barcode_patient)
        for name in names:
            possible = keyed.get(barcode_patient(name), []) if name not in found else []
            if len(possible := [other for other in possible if _same_sample(name, other)]) == 1:
                found[name], ways[name] = possible[0], "barcode"
    return Matching(
        own={name: found[name] for name in names if name in found},
        ways={name: ways[name] for name in names if name in ways},
        unmatched=tuple(name for name in names if name not in found),
        others=len(others),
    )


def join_patients(location: str, foreign: Iterable[str], own: Iterable[str], where: str) -> Matching:
    """Matches the patients of a table with those of the clinical table, and refuses matches that are likely chance.

    Args:
        location: of the table, for messages.
        foreign: its patients.
        own: patients of the clinical table.
        where: its location, for messages.

    Raises:
        InputError: a few identifiers match as numbers only and most do not match, or some are patients and others
            begin with a patient's identifier.
    """
    names, others = list(dict.fromkeys(foreign)), list(dict.fromkeys(own))
    matching = match_identifiers(names, others)
    numbers = matching.of("number")
    if numbers and matching.share < 0.5:
        name, patient = numbers[0], matching.own[numbers[0]]
        raise InputError(
            f"{location}: only {len(matching.own):,} of its {len(names):,} patients are in {where}, of which "
            f"{len(numbers):,} only if leading zeros and decimals do not count ('{name}' as '{patient}'), which may be "
            f"chance: write its identifiers as in {where}, such as '{others[0]}'"
        )
    refuse_longer(location, matching, others, where)
    return matching


def refuse_longer(location: str, matching: Matching, others: Iterable[str], where: str, kind: str = "") -> None:
    """Refuses a table in which some identifiers are patients and others are longer ones that begin with a patient's.

    Args:
        location: of the table, for messages.
        matching: of its identifiers with the patients.
        others: the patients.
        where: the location of their table, for messages.
        kind: `omics` if `omics.leave_out` can leave some of its identifiers out.

    Raises:
        InputError: it is so, and too often for chance.
    """
    longer = _longer(matching, others)
    if matching.own and len(longer) >= max(2, _SUSPICIOUS * (len(matching.own) + len(matching.unmatched))):
        name, patient = next(iter(longer.items()))
        endings = {own[len(longer[own]) :] for own in longer}
        ending = endings.pop() if kind == "omics" and len(endings) == 1 else ""
        more = f", or leave those others out by 'omics.leave_out: [\"*{ending}\"]'" if ending else ""
        raise InputError(
            f"{location}: {len(matching.own):,} of its identifiers are patients of {where}, and {len(longer):,} others "
            f"begin with one, such as '{name}' with '{patient}': write the patient's identifier alone in every row, as "
            "a sample's or slide's does not match it" + more
        )


def nearest(names: Iterable[str], others: Iterable[str]) -> tuple[str, str] | None:
    """Returns the first of the names that resembles one of the others, and that one."""
    pool = {spelling(other): other for other in list(others)[:2000]}
    for name in list(names)[:5]:
        near = difflib.get_close_matches(spelling(name), pool, n=1, cutoff=0.5)
        if near:
            return name, pool[near[0]]
    return None


def few_matched(
    matching: Matching, location: str, where: str, others: Iterable[str], kind: str = "patients"
) -> list[Understood]:
    """Warns if less than half of a table's patients are in the other, with the nearest spellings."""
    if matching.share >= 0.5 or not matching.unmatched:
        return []
    total = len(matching.own) + len(matching.unmatched)
    near = nearest(matching.unmatched, others)
    hint = f"; '{near[0]}' is nearest to '{near[1]}'" if near else f", such as '{matching.unmatched[0]}'"
    what = f"only {len(matching.own):,} of its {total:,} {kind} are in {where}{hint}"
    return [Understood(location, "identifiers", what, len(matching.own), warning=True)]


def is_row_numbers(values: Iterable[str | None]) -> bool:
    """Returns whether a column counts its rows from 0 or 1."""
    cells = list(values)
    return any(cells == [str(start + row) for row in range(len(cells))] for start in (0, 1)) or not cells


def is_normal(name: str) -> bool:
    """Returns whether a barcode of TCGA or TARGET is of normal tissue, blood or a control, not of a tumour."""
    kind = _sample_type(name)
    return kind is not None and kind not in _TUMOURS


def _by_key(names: Iterable[str], key: Callable[[str], Hashable | None]) -> dict[Hashable | None, list[str]]:
    keyed: dict[Hashable | None, list[str]] = {}
    for name in names:
        if (own := key(name)) is not None:
            keyed.setdefault(own, []).append(name)
    return keyed


def spelling(name: str) -> str:
    """Returns an identifier in one case and with one separator; R's leading X of a number is dropped."""
    plain = _SEPARATORS.sub("-", unicodedata.normalize("NFKC", name).casefold()).strip("-")
    return plain[1:] if re.match(r"x\d", plain) else plain


def canonical(name: str) -> str:
    """Returns the same text for all identifiers that `match_identifiers` takes for one patient's.

    >>> canonical("TCGA-A0-1000-01Z-00-DX1"), canonical("0012"), canonical("P 7")
    ('tcga-a0-1000', '12', 'p-7')
    """
    as_number = number(name)
    return spelling(barcode_patient(name) or (name if as_number is None else str(as_number)))


def person(name: str) -> str:
    """Returns the same text for all identifiers of a table that one person may have; of any text after a barcode, too.

    >>> person("TCGA-A0-1000-DX2"), person("tcga.a0.1000"), person("0012")
    ('tcga-a0-1000', 'tcga-a0-1000', '12')
    """
    return canonical(barcode_patient(name, longer=True) or name)


def number(name: str) -> int | None:
    """Returns the number that an identifier is, apart from leading zeros and decimals; None if it is none."""
    return int(float(name)) if _NUMBER.fullmatch(name) and len(name) < 16 and float(name).is_integer() else None


def barcode_patient(name: str, *, longer: bool = False) -> str | None:
    """Returns the part of a barcode of TCGA or TARGET that names the patient; None if it is no barcode.

    Args:
        name: an identifier.
        longer: whether the patient's part may also be followed by what is not of a barcode, as in `TCGA-A0-1000-DX1`.
    """
    pattern = _BEGINS_WITH_BARCODE if longer else _BARCODE
    barcode = pattern.fullmatch(_hyphenated(name))
    return barcode[1] if barcode else None


def _hyphenated(name: str) -> str:
    return _SEPARATORS.sub("-", name.strip()).upper()


def _sample_type(name: str) -> str | None:
    barcode = _BARCODE.fullmatch(_hyphenated(name))
    return barcode[2] if barcode else None


def _same_sample(name: str, other: str) -> bool:
    types = _sample_type(name), _sample_type(other)
    return None in types or types[0] == types[1]


def _longer(matching: Matching, others: Iterable[str]) -> dict[str, str]:
    """Returns identifiers that match nothing but begin with another and a separator, and that one."""
    own = set(others)
    longer = {}
    for name in matching.unmatched:
        cuts = [match.start() for match in re.finditer(r"[._\-\s:/]", name)]
        if begins := [name[:cut] for cut in reversed(cuts) if name[:cut] in own]:
            longer[name] = begins[0]
    return longer
