"""Which bags are explained by which models: those of feature files, or the tested slides of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import yaml

from momkd_ray import storage
from momkd_ray.bags.store import BagStore
from momkd_ray.config.load import Config
from momkd_ray.errors import InputError
from momkd_ray.formats.bag import Bag, Recipe
from momkd_ray.formats.knn_graph import no_graph
from momkd_ray.formats.readers import read_bag
from momkd_ray.input_faults import raise_faults
from momkd_ray.predict.ensemble import check_ensemble, reads_patients
from momkd_ray.predict.left_out import LeftOutSlides, bad_rows, inputs_checked, without_counterpart
from momkd_ray.predict.slides import group_bags, list_slides, match_patients, open_slides
from momkd_ray.run.layout import RunDirectory

GIVEN_MODELS = "given models"


@dataclass(frozen=True)
class BagToExplain:
    """A bag, and the models that explain it.

    Attributes:
        bag_id, patient_id: identifiers.
        slides: the bag's slides.
        paths: their feature files; empty if they are read from the store.
        models: locations of bundles, whose attention and contributions are averaged.
        model_name: their name in titles and tables.
        bytes: size of its slides.
    """

    bag_id: str
    patient_id: str
    slides: tuple[str, ...]
    paths: tuple[str, ...]
    models: tuple[str, ...]
    model_name: str
    bytes: int = 0


@dataclass(frozen=True)
class Source:
    """Where slides are read from: a bag store, or feature files by a recipe."""

    store: BagStore | None
    recipe: Recipe
    width: int

    @property
    def location(self) -> str:
        """Where slides without a path of their own lie."""
        return "" if self.store is None else self.store.uri

    def read(self, slide_id: str, path: str | None, *, needs_graph: bool = True) -> Bag:
        """Reads the bag of a slide; without its graph if no model needs it, which takes a second of a large slide."""
        if self.store is not None:
            bag = self.store.read(slide_id)
        else:
            assert path is not None
            recipe = self.recipe if needs_graph else replace(self.recipe, graph="none")
            bag = read_bag(path, slide_id, recipe, self.width)
        if needs_graph:
            return bag
        indptr, indices = no_graph(bag.n_patches)
        return replace(bag, edge_indptr=indptr, edge_indices=indices)


def of_features(
    models: Sequence[str],
    features: str,
    slides: str | None,
    chosen: Sequence[str],
    columns: tuple[str | None, str | None],
    left_out: LeftOutSlides,
    tell: Callable[[str], None],
) -> tuple[list[BagToExplain], Source]:
    """Lists the bags of a folder of feature files.

    Args:
        models: locations of bundles.
        features: the folder.
        slides: table of patients and slides, which models of patients' bags need.
        chosen: the only slides to explain; all if empty.
        columns: of patients and slides in the table; None to recognise them.
        left_out: receives the bad rows, the slides without a row and the rows without a feature file; of these two only
            those that are chosen.
        tell: receives sentences on the table.

    Raises:
        InputError: a model or the table is bad, a chosen slide is unknown, no slide is left, or a row is bad and bad
            inputs end the command.
    """
    card = check_ensemble(models)[0]
    joint = reads_patients(models[0], card, slides)
    opened = open_slides(slides, *columns)
    files = list_slides(features)
    table, patients, faults = match_patients(opened, files, features)
    _refuse_unknown(chosen, [*patients, *files["slide_id"], *(fault.id for fault in faults)], features)
    faults = [fault for fault in faults if not chosen or fault.id in chosen or bad_rows([fault])]
    some_left = bool(set(patients) & set(chosen) if chosen else patients)
    total = inputs_checked(len(files), slides)
    left_out.add_rows(faults, total, some_left=some_left)
    for sentence in (*(opened.told if opened else ()), *without_counterpart(faults, slides, "not drawn")):
        tell(sentence)
    if not some_left:
        raise_faults(faults, total, left_out.rejected)
    bags = group_bags(table[table["slide_id"].isin(list(patients))], patients, joint=joint)
    name = GIVEN_MODELS if len(models) > 1 else models[0]
    listed = [
        BagToExplain(
            row["bag_id"],
            row["patient_id"],
            tuple(row["slides"]),
            tuple(row["paths"]),
            tuple(models),
            name,
            row["bytes"],
        )
        for row in bags.to_dict("records")
    ]
    recipe = Recipe(card.neighbors, card.graph)
    return _choose(listed, chosen), Source(None, recipe, card.width)


def of_run(run: str, fold: int | None, chosen: Sequence[str]) -> tuple[list[BagToExplain], Source]:
    """Lists the test bags of a finished run, each with the model of the fold that tests it.

    Args:
        run: the run directory.
        fold: the only fold; all finished folds if None.
        chosen: the only slides to explain; all if empty.

    Raises:
        InputError: there is no finished fold, a chosen slide is not tested, or a slide is tested in several folds.
    """
    directory = RunDirectory(run)
    config = _configuration(directory)
    folds = [f for f in _finished_folds(directory) if fold is None or f == fold]
    if not folds:
        which = "has no finished fold" if fold is None else f"has no finished fold {fold}"
        raise InputError(f"{run} {which}: run momkd-ray crossval or train first, or name another --run or --fold")
    store = BagStore.open(config.store_uri)
    bags: list[BagToExplain] = []
    for number in folds:
        of_fold = directory.fold(number)
        for row in storage.read_table(of_fold.slides("test")).itertuples():
            # the name of a bag of several slides lists them
            slides = tuple(str(row.slide_id).split(", ")) if config.cohort.bag == "patient" else (str(row.slide_id),)
            size = sum(store.nbytes(slide) for slide in slides if slide in store.entries)
            bags.append(
                BagToExplain(
                    str(row.slide_id), str(row.patient_id), slides, (), (of_fold.model,), f"fold {number}", size
                )
            )
    twice = pd.Series([bag.bag_id for bag in bags])
    if len(repeated := twice[twice.duplicated()]):
        raise InputError(f"slide {repeated.iloc[0]} is tested in several folds of {run}: choose one by --fold")
    _refuse_unknown(chosen, sorted(slide for bag in bags for slide in bag.slides), run)
    return _choose(bags, chosen), Source(store, Recipe(), store.width)


def _refuse_unknown(chosen: Sequence[str], known: Sequence[str], where: str) -> None:
    for slide in chosen:
        if slide not in known:
            raise InputError(f"there is no slide {slide} in {where}: correct --slide, such as {known[0]}")


def _choose(bags: list[BagToExplain], chosen: Sequence[str]) -> list[BagToExplain]:
    return [bag for bag in bags if set(bag.slides) & set(chosen)] if chosen else bags


def _configuration(directory: RunDirectory) -> Config:
    try:
        text = storage.read_text(directory.configuration)
    except FileNotFoundError as error:
        raise InputError(
            f"{directory.location} is no run directory (it has no run.yaml): name the run.dir of a cross-validation"
        ) from error
    try:
        return Config.model_validate(yaml.safe_load(text))
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{directory.configuration} is damaged ({' '.join(str(error).split())[:200]}): run momkd-ray crossval again"
        ) from error


def _finished_folds(directory: RunDirectory) -> list[int]:
    names = (name.removeprefix("fold=") for name in storage.list_names(directory.location) if name.startswith("fold="))
    numbers = sorted(int(name) for name in names if name.isdigit())
    return [number for number in numbers if directory.fold(number).is_finished()]
