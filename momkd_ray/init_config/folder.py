"""What a folder holds: feature files and their encoder, tables and their columns, omics, splits."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from momkd_ray import storage
from momkd_ray.cohort.feature_files import FeatureFile, list_features
from momkd_ray.cohort.features_elsewhere import has_no_patches
from momkd_ray.cohort.identifiers import Matching, barcode_patient, match_identifiers, nearest
from momkd_ray.cohort.known_columns import PATIENT_COLUMNS, is_known
from momkd_ray.cohort.slide_names import FEATURE_SUFFIXES, slide_id_of
from momkd_ray.cohort.table_files import SUFFIXES, read_table_file
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag, Recipe
from momkd_ray.formats.readers import read_bag

MAX_DEPTH = 4
CLAM_FOLDERS = ("h5_files", "pt_files")
OMICS_COLUMNS = 30  # numeric columns from which a table is taken for omics
ENOUGH = 0.5  # share of identifiers that must match
_SAMPLED_COLUMNS = 400
_SAMPLED_FILES = 5


@dataclass(frozen=True)
class Features:
    """A folder of feature files.

    Attributes:
        folder: its path.
        slides: names of the slides.
        layout, encoder, width: of the first file.
        has_coords: whether the first file has coordinates.
        others: other folders of feature files, with their counts.
        passed_over: folders whose files cannot be read as features, with the reason of the first.
    """

    folder: str
    slides: tuple[str, ...]
    layout: str
    encoder: str | None
    width: int
    has_coords: bool
    others: tuple[tuple[str, int], ...]
    passed_over: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Table:
    """A table that could be read.

    Attributes:
        path: its file.
        columns: names of all columns.
        texts: cells of the columns that may hold identifiers or labels; None for a blank one.
        numeric: number of columns of numbers.
        rows: number of rows.
    """

    path: str
    columns: tuple[str, ...]
    texts: Mapping[str, tuple[str | None, ...]]
    numeric: int
    rows: int

    def values(self, column: str) -> list[str]:
        """Returns the cells of a column that are not blank."""
        return [cell for cell in self.texts[column] if cell is not None]


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
        features: the feature files.
        tables: the tables that could be read.
        unread: why the others could not.
        vectors: folders of `.npy` files with `genes.txt`.
        anndata: `.h5ad` files.
        splits: folds: STAMP's, CLAM's folder or Patho-Bench's table.
    """

    features: Features
    tables: tuple[Table, ...]
    unread: tuple[str, ...]
    vectors: tuple[str, ...] = ()
    anndata: tuple[str, ...] = ()
    splits: tuple[str, ...] = field(default=())


def list_folder(folder: str) -> Listing:
    """Lists a local folder and the folders in it.

    Raises:
        InputError: it does not exist, is not local, or has no feature files.
    """
    root = storage.local_path(folder)
    if root is None:
        raise InputError(f"{folder} is not a local folder: copy its tables to one, and set features.dir by hand")
    if not os.path.isdir(root):
        raise InputError(f"{folder} does not exist: name the folder of your tables and feature files")
    held: list[str] = []
    tables, unread, vectors, anndata, splits = [], [], [], [], []
    for place, names in _walk(root):
        if "manifest.json" in names and any(name.endswith(".parquet") for name in names):
            continue  # a bag store
        if "genes.txt" in names and any(name.endswith(".npy") for name in names):
            vectors.append(place)
        elif any(name.lower().endswith(FEATURE_SUFFIXES) for name in names):
            own = place if os.path.basename(place) not in CLAM_FOLDERS else os.path.dirname(place)
            held += [own] if own not in held else []
        anndata += [os.path.join(place, name) for name in sorted(names) if name.lower().endswith(".h5ad")]
        if any(name.startswith("splits_") and name.endswith(".csv") for name in names):
            splits.append(place)
            continue
        for name in sorted(names):
            path = os.path.join(place, name)
            if name == "splits.json" or name == "k=all.tsv":
                splits.append(path)
            if _is_table(name) and not name.startswith("."):
                try:
                    tables.append(_table(path))
                except InputError as error:
                    unread.append(str(error))
    return Listing(_features(held, folder), tuple(tables), tuple(unread), tuple(vectors), tuple(anndata), tuple(splits))


def _walk(root: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the folders with the names of their files, each once, also those that links lead to."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(root, followlinks=True):
        status = os.stat(place)
        if (own := (status.st_dev, status.st_ino)) in seen:  # a link to a folder above it, for instance
            folders.clear()
            continue
        seen.add(own)
        visible = [name for name in folders if not name.startswith(".")]
        # of a folder and a link to it beside it, the folder is taken
        folders[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        if place[len(root) :].count(os.sep) >= MAX_DEPTH:
            folders.clear()
        yield place, names


def _is_table(name: str) -> bool:
    stem = name.lower()
    for packed in (".gz", ".bz2", ".xz", ".zst", ".zip"):
        stem = stem.removesuffix(packed)
    return stem.endswith(tuple(s for s in SUFFIXES)) and stem not in ("genes.txt", "readme.txt")


def _features(folders: Sequence[str], asked: str) -> Features:
    found = {folder: list_features(folder) for folder in folders}
    found = {folder: files for folder, files in found.items() if files}
    if not found:
        suffixes = ", ".join(FEATURE_SUFFIXES)
        raise InputError(f"{asked} holds no feature file ({suffixes}): name the folder that has them and the tables")
    # coordinates and embeddings of slides, which TRIDENT writes beside the features, only where there is nothing else
    ranked = sorted(found, key=lambda folder: (has_no_patches(folder, asked), -len(found[folder]), folder))
    bags = {folder: _first_bag(list(found[folder].values())) for folder in ranked}
    readable = [folder for folder, bag in bags.items() if not isinstance(bag, str)]
    for folder, bag in bags.items():
        if isinstance(bag, str):
            continue
        return Features(
            folder=folder,
            slides=tuple(found[folder]),
            layout=bag.provenance["format"],
            encoder=bag.provenance.get("encoder"),
            width=bag.width,
            has_coords=bag.coords is not None,
            others=tuple((other, len(found[other])) for other in readable if other != folder),
            passed_over=tuple(
                (other, why) for other, why in bags.items() if isinstance(why, str) and not has_no_patches(other, asked)
            ),
        )
    raise InputError(f"no feature file of {ranked[0]} can be read, the first: {bags[ranked[0]]}")


def _first_bag(files: Sequence[FeatureFile]) -> Bag | str:
    """Reads the first of some files that can be read; returns what is wrong with the first file if none can."""
    errors = []
    for file in files[:_SAMPLED_FILES]:
        try:
            return read_bag(file.path, "slide", Recipe(graph="none"))
        except InputError as error:
            errors.append(str(error))
    return errors[0]


def _table(path: str) -> Table:
    table = read_table_file(path, repeated_columns=True).table
    texts: dict[str, tuple[str | None, ...]] = {}
    numeric = 0
    for number, name in enumerate(table.column_names):
        column = table.column(number)
        is_number = _is_numbers(column)
        numeric += is_number
        # numbers may be identifiers or classes too, but not those of thousands of genes
        if name not in texts and number < _SAMPLED_COLUMNS:
            texts[name] = tuple(None if cell is None else _text(cell) for cell in column.to_pylist())
    return Table(path, tuple(table.column_names), texts, numeric, table.num_rows)


def _is_numbers(column: pa.ChunkedArray) -> bool:
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        return True
    cells = [cell for cell in column.slice(0, 50).to_pylist() if cell is not None]
    try:
        return bool(cells) and all(isinstance(float(cell), float) for cell in cells)
    except (TypeError, ValueError):
        return False


def _text(cell: object) -> str:
    return f"{cell:.0f}" if isinstance(cell, float) and cell.is_integer() else str(cell)


@dataclass(frozen=True)
class SlideColumns:
    """The table of slides: its columns of slides and of patients, and the slides that have a feature file."""

    table: Table
    slide: str
    patient: str
    matching: Matching


def find_slides(listing: Listing) -> SlideColumns | None:
    """Finds the table, and the column in it, that names the feature files; None if there is none."""
    best: tuple[int, Table, str, Matching] | None = None
    for table, column in _identifying_columns(listing):
        names = [slide_id_of(os.path.basename(value)) for value in table.values(column)]
        matching = match_identifiers(names, listing.features.slides, barcodes=False)
        if matching.own and (best is None or len(matching.own) > best[0]):
            best = len(matching.own), table, column, matching
    if best is None:
        return None
    _, table, column, matching = best
    return SlideColumns(table, column, _patient_column(table, column), matching)


def _identifying_columns(listing: Listing) -> Iterator[tuple[Table, str]]:
    """Lists columns with hardly a value twice; a table of patches or annotations names its slides in many rows each."""
    for table in listing.tables:
        for column in table.texts:
            values = table.values(column)
            if len(values) <= 2 * len(set(values)):
                yield table, column


def no_slide_table(listing: Listing) -> str:
    """Says that no table names the feature files, with the nearest spelling or the columns and a row to write."""
    slides = listing.features.slides
    where = f"no table names the {len(slides)} feature files of {listing.features.folder}"
    for table, column, (slide, near) in nearest_columns(listing):
        return (
            f"{where}; the nearest is '{near}' in the column {column!r} of {table.path}, for '{slide}': "
            "write slides in the table as the feature files are named"
        )
    own, named = "P1", "its patient"
    for table, column in _identifying_columns(listing):
        if is_known(column, PATIENT_COLUMNS) and table.values(column):
            own, named = table.values(column)[0], f"its patient as the column {column!r} of {table.path} names it"
            break
    return (
        f"{where}: add a table with the columns PATIENT and FILENAME to the folder and a row for each file, such as "
        f"'{barcode_patient(slides[0]) or own},{slides[0]}', with {named}"
    )


def nearest_columns(listing: Listing) -> Iterator[tuple[Table, str, tuple[str, str]]]:
    """Yields the columns, but for those of patients, with a value that resembles a feature file's name, and both."""
    for table, column in _identifying_columns(listing):
        near = None if is_known(column, PATIENT_COLUMNS) else nearest(listing.features.slides, table.values(column))
        if near is not None:
            yield table, column, near


def _patient_column(table: Table, slide: str) -> str:
    named = [name for name in table.texts if name != slide and is_known(name, PATIENT_COLUMNS)]
    if named:
        return named[0]
    others = [name for name in table.texts if name != slide and len(table.values(name)) == table.rows]
    if not others:
        return slide
    return max(others, key=lambda name: len(set(table.values(name))))


def match_patients(table: Table, patients: Collection[str]) -> tuple[str, Matching] | None:
    """Finds the column of a table that names most of the patients; None if none names a tenth of them."""
    best: tuple[str, Matching] | None = None
    for column in table.texts:
        matching = match_identifiers(table.values(column), patients)
        found = len(set(matching.own.values()))
        if found >= 0.1 * len(patients) and (best is None or found > len(set(best[1].own.values()))):
            best = column, matching
    return best


def is_omics(table: Table, patients: Collection[str]) -> bool:
    """Tells whether a table has a row or a column for patients, and many numbers."""
    in_header = match_identifiers(table.columns, patients).own
    if len(in_header) >= max(2, 0.1 * len(patients)):
        return True
    return table.numeric >= OMICS_COLUMNS and match_patients(table, patients) is not None
