"""Training one fold: the same function in one process and in every worker of Ray Train."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch.optim.lr_scheduler import ReduceLROnPlateau

from momkd_ray import storage
from momkd_ray.bags.batch import BagBatch, collate
from momkd_ray.bags.share import BagSource
from momkd_ray.bags.stream import Step, ahead, deal, divide, draw_seed, passes, plan_epoch
from momkd_ray.config import Config
from momkd_ray.errors import InputError, RunError
from momkd_ray.model.memory import spherical_kmeans
from momkd_ray.model.momkd import CLASSES, MoMKD
from momkd_ray.train.state import Progress, restore, save_state
from momkd_ray.train.step import StepOutcome, Stepper, mean_losses
from momkd_ray.train.sync import Collective, device_of_worker, join_workers, merged
from momkd_ray.train.watch import Watch

STATE_FILE = "checkpoint.pt"

Task = TypeVar("Task")
Made = TypeVar("Made")


@dataclass(frozen=True)
class FoldTask:
    """All that a worker needs to train one fold."""

    config: Config
    fold: int
    bags: pd.DataFrame  # bag_id, slides, patient_id, y, role (train | val | test), patches; sorted by bag_id
    omics: dict[str, np.ndarray]  # patient -> (G,) float32, selected and scaled; training patients only
    genes: int
    width: int
    source: BagSource
    location: str  # the fold's folder in the run directory
    fingerprint: str  # of configuration, data and folds: a checkpoint of another is refused


@dataclass(frozen=True)
class RoleBags:
    """The bags of one role, as columns."""

    ids: list[str]
    slides: list[str]
    patients: list[str]
    y: list[int]
    patches: list[int]

    @classmethod
    def of(cls, bags: pd.DataFrame, role: str) -> RoleBags:
        """Those of a fold's bags that have this role."""
        own = bags[bags["role"] == role]
        return cls(*(own[name].tolist() for name in ("bag_id", "slides", "patient_id", "y", "patches")))


Report = Callable[[dict[str, Any]], None]


def train_loop_per_worker(loop: dict[str, Any]) -> dict[str, Any]:
    """Train a fold to its end, going on from its checkpoint if there is one.

    Args:
        loop: `task` (a `FoldTask`) and `report`, called with each epoch's metrics.

    Returns:
        `best_epoch` and `val_auc`; checkpoint, metrics and slide-level predictions lie in the fold's folder.
    """
    task: FoldTask = loop["task"]
    report: Report = loop["report"]
    torch.set_num_threads(max(1, int(task.config.cluster.cpus_per_worker)))
    training = FoldTraining(task, join_workers())
    progress = training.resume() or training.begin()
    while not training.finished(progress):
        metrics = training.epoch(progress)
        training.checkpoint(progress)
        report(metrics)
    return training.predict(progress)


class FoldTraining:
    """One fold's model, optimiser and data on one worker."""

    def __init__(self, task: FoldTask, collective: Collective) -> None:
        config = task.config
        self.task, self.config, self.collective = task, config, collective
        self.device = device_of_worker(config.cluster.gpus_per_worker)
        classes = (config.cohort.negative, config.cohort.positive)
        self.watch = Watch(config.run.dir, task.location, task.fold, collective.rank, classes)
        self.by_role = {role: RoleBags.of(task.bags, role) for role in ("train", "val", "test")}
        torch.manual_seed(draw_seed("weights", config.train.seed, task.fold) % 2**63)
        model = MoMKD(config.model, config.memory, config.loss, width=task.width, genes=task.genes)
        self.stepper = Stepper(model, config.train, collective, self.device)
        self.scheduler = ReduceLROnPlateau(
            self.stepper.optimiser, "max", factor=config.train.lr_factor, patience=config.train.lr_patience
        )

    @property
    def model(self) -> MoMKD:
        """The model, without the wrapper of DDP."""
        return self.stepper.model

    def resume(self) -> Progress | None:
        """The state of the fold's checkpoint, everything put back; None without one."""
        place = storage.join(self.task.location, STATE_FILE)
        progress = restore(place, self.stepper, self.scheduler, self.task.fingerprint)
        if len(set(self.collective.gather(progress is None))) > 1:
            raise InputError(f"not every worker sees {place}: put run.dir where all nodes see it, such as s3://")
        return progress

    def begin(self) -> Progress:
        """Initialise the memory by k-means over patch projections of the training slides (method 4)."""
        config, bags = self.config.memory, self.by_role["train"]
        class_of = dict(zip(bags.ids, bags.y, strict=True))
        samples: dict[str, np.ndarray] = {}
        for bag_id, batch in self._my_bags(bags):
            rng = np.random.default_rng(draw_seed("memory", self.config.train.seed, bag_id))
            n_patches = batch.patches_per_bag[0]
            wanted = min(n_patches, -(-config.init_patches // bags.y.count(class_of[bag_id])))
            patches = np.sort(rng.choice(n_patches, wanted, replace=False))
            with torch.no_grad():
                projected_PS = self.model.eval()(batch.to(self.device)).patches_PS
            samples[bag_id] = projected_PS[torch.from_numpy(patches).to(self.device)].cpu().numpy()
        samples = merged(self.collective.gather(samples))
        centroids = []
        for y in range(CLASSES):
            own = [samples[s] for s in bags.ids if class_of[s] == y]
            centroids.append(self._centroids(np.concatenate(own), y))
        self.model.memory.initialise(torch.stack(centroids).to(self.device))
        return Progress()

    def finished(self, progress: Progress) -> bool:
        """Whether the last epoch is done or the validation AUC has not risen for `patience` epochs."""
        train = self.config.train
        return progress.epoch >= train.epochs or progress.stale_epochs >= train.patience

    def epoch(self, progress: Progress) -> dict[str, Any]:
        """Train one epoch, validate, and move scheduler and early stopping."""
        began = time.monotonic()
        outcomes, waits = self._train_steps(progress)
        trained = time.monotonic()
        losses = mean_losses(outcomes, self.collective, self.device)
        if not np.isfinite(losses["loss_total"]):
            raise RunError(
                f"fold {self.task.fold}: the loss is {losses['loss_total']} in epoch {progress.epoch}; "
                "lower train.lr or train.clip_norm"
            )
        train_auc = self._train_auc(outcomes)
        val = self._predict_bags("val")
        val_auc = patient_auc(val["y"], val["p_1"], val["patient_id"])
        metrics: dict[str, Any] = {
            "fold": self.task.fold,
            "epoch": progress.epoch,
            **losses,
            "lr": self.stepper.optimiser.param_groups[0]["lr"],
            "train_auc": train_auc,
            "val_auc": val_auc,
            "seconds_train": round(trained - began, 3),
            "seconds_first_batch": round(waits[0], 3),
            "seconds_input_wait": round(sum(waits), 3),
            "seconds_validate": round(time.monotonic() - trained, 3),
        }
        self.scheduler.step(val_auc)
        progress.stale_epochs += 1
        if val_auc > progress.best_auc:
            progress.best_auc, progress.best_epoch, progress.stale_epochs = val_auc, progress.epoch, 0
            progress.best_weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.history.append(metrics)
        self.watch.epoch(metrics, self.model.memory, self.stepper.network)
        return metrics | {"best_val_auc": progress.best_auc}

    def checkpoint(self, progress: Progress) -> None:
        """Rank 0 writes the checkpoint, then the metrics that it covers."""
        if self.collective.rank == 0:
            place = storage.join(self.task.location, STATE_FILE)
            save_state(place, progress, self.stepper, self.scheduler, self.task.fingerprint)
            lines = "".join(json.dumps(line) + "\n" for line in progress.history)
            storage.write_text(storage.join(self.task.location, "metrics.jsonl"), lines)

    def predict(self, progress: Progress) -> dict[str, Any]:
        """Predict validation and test slides with the best epoch's weights; rank 0 writes them."""
        self.model.load_state_dict(progress.best_weights)
        for role in ("val", "test"):
            slides = self._named(self._predict_bags(role))
            if self.collective.rank == 0:
                storage.write_table(storage.join(self.task.location, f"{role}_slides.parquet"), slides)
        return {"best_epoch": progress.best_epoch, "val_auc": progress.best_auc}

    def _named(self, slides: pd.DataFrame) -> pd.DataFrame:
        """Predictions in the user's own class names."""
        classes = (self.config.cohort.negative, self.config.cohort.positive)
        named = slides.assign(label=[classes[y] for y in slides["y"]])
        named = named.rename(columns={f"p_{y}": f"p_{name}" for y, name in enumerate(classes)})
        return named[["slide_id", "patient_id", "label", *(f"p_{name}" for name in classes)]]

    def _train_steps(self, progress: Progress) -> tuple[list[StepOutcome], list[float]]:
        """The rest of the epoch's steps, and for each the seconds this worker waited for its bags."""
        train, bags, rank = self.config.train, self.by_role["train"], self.collective.rank
        plan = plan_epoch(
            bags.ids,
            np.array(bags.y),
            seed=draw_seed(train.seed, self.task.fold),
            epoch=progress.epoch,
            bags_per_step=train.bags_per_step,
            balanced=train.balanced,
        )
        shares = [by_rank[rank] for by_rank in deal(plan, bags.patches, self.collective.world)]
        # a rank left without a bag in a short last step takes part with the step's first one at weight 0
        needed = [share or step[:1] for share, step in zip(shares, plan, strict=True)]
        ready = self._ahead(
            needed[progress.step :], self._batches, lambda draws: sum(bags.patches[draw.bag] for draw in draws)
        )
        outcomes, waits = [], []
        for step, share in list(zip(plan, shares, strict=True))[progress.step :]:
            began = time.monotonic()
            batches = next(ready)
            waits.append(time.monotonic() - began)
            outcomes.append(self.stepper.step(batches if share else [], len(step), filler=batches[0]))
            self.watch.step(batches if share else [], began, waits[-1])
        return outcomes, waits

    def _batches(self, draws: Step) -> list[BagBatch]:
        """The batches of this rank's draws of a step, one a pass; runs ahead of the training on a thread of its own."""
        bags, device = self.by_role["train"], self.device
        groups = passes([bags.patches[draw.bag] for draw in draws], self.config.train.patches_per_pass)
        return [
            collate(
                [self.task.source.read(bags.ids[draws[i].bag]) for i in group],
                labels=[bags.y[draws[i].bag] for i in group],
                omics=[self.task.omics.get(bags.patients[draws[i].bag]) for i in group],
                seeds=[draws[i].seed for i in group],
                device=device,
            )
            for group in groups
        ]

    def _my_bags(self, bags: RoleBags) -> Iterator[tuple[str, BagBatch]]:
        """The bags of this rank's share, one at a time so that no neighbour changes a digit of another."""
        mine = divide(bags.patches, self.collective.world)[self.collective.rank]
        yield from self._ahead(
            mine,
            lambda place: (bags.ids[place], collate([self.task.source.read(bags.ids[place])], device=self.device)),
            lambda place: bags.patches[place],
        )

    def _ahead(
        self, tasks: Iterable[Task], make: Callable[[Task], Made], patches: Callable[[Task], int]
    ) -> Iterator[Made]:
        """What is made of each task, in order, by the threads that read ahead within their memory."""
        cluster = self.config.cluster
        bytes_per_patch = 4 * self.task.width
        return ahead(
            tasks,
            make,
            lambda task: patches(task) * bytes_per_patch,
            threads=cluster.read_threads,
            limit=cluster.read_ahead_mb * 2**20,
        )

    def _centroids(self, sample_NS: np.ndarray, y: int) -> torch.Tensor:
        config = self.config.memory
        rng = np.random.default_rng(draw_seed("centroids", self.config.train.seed, y))
        if len(sample_NS) < config.components:
            raise InputError(
                f"memory.components is {config.components}, but fold {self.task.fold} has only "
                f"{len(sample_NS)} training patches of class {y}; lower memory.components"
            )
        chosen = np.sort(rng.permutation(len(sample_NS))[: config.init_patches])
        start = torch.from_numpy(rng.permutation(len(chosen))[: config.components])
        # on the CPU, where sums come in one order: every rank must find the same centroids to the last bit
        centroids_KS, _ = spherical_kmeans(torch.from_numpy(sample_NS[chosen]), start, config.init_iterations)
        return centroids_KS

    def _predict_bags(self, role: str) -> pd.DataFrame:
        """Probabilities of every bag of a role."""
        self.model.eval()
        bags = self.by_role[role]
        mine = {
            bag_id: self.model.predict(batch.to(self.device))[0][0].tolist() for bag_id, batch in self._my_bags(bags)
        }
        probabilities = merged(self.collective.gather(mine))
        table = pd.DataFrame({"slide_id": bags.slides, "patient_id": bags.patients, "y": bags.y})
        p_NY = np.array([probabilities[bag_id] for bag_id in bags.ids])
        if not np.isfinite(p_NY).all():
            raise RunError(f"fold {self.task.fold}: the model predicts NaN; lower train.lr")
        for y in range(CLASSES):
            table[f"p_{y}"] = p_NY[:, y]
        return table

    def _train_auc(self, outcomes: Sequence[StepOutcome]) -> float | None:
        """AUC over the epoch's training draws, as they were predicted while training; None if all were of a class."""
        ids = [bag_id for o in outcomes for bag_id in o.bag_ids]
        p = torch.cat([o.positive_B for o in outcomes]).tolist() if outcomes else []
        drawn = [pair for part in self.collective.gather(list(zip(ids, p, strict=True))) for pair in part]
        class_of = dict(zip(self.by_role["train"].ids, self.by_role["train"].y, strict=True))
        y, p_all = [class_of[s] for s, _ in drawn], [value for _, value in drawn]
        return float(roc_auc_score(y, p_all)) if len(set(y)) == CLASSES else None


def patient_auc(y: pd.Series, p: pd.Series, patient: pd.Series) -> float:
    """AUC over patients, each the mean probability of its slides."""
    by_patient = pd.DataFrame({"y": y, "p": p, "patient": patient}).groupby("patient").mean()
    return float(roc_auc_score(by_patient["y"], by_patient["p"]))
