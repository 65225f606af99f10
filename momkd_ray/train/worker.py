"""Training one fold: the same function in one process and in every worker of Ray Train."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from momkd_ray import storage
from momkd_ray.batches.sampling import Step
from momkd_ray.config.load import Config
from momkd_ray.errors import DivergedError
from momkd_ray.model.momkd import CLASSES, MoMKD
from momkd_ray.ray_runtime import environment
from momkd_ray.seeds import derive_seed
from momkd_ray.train.checkpoints import Checkpoints
from momkd_ray.train.collectives import Collective, device_of_worker, join_process_group, merge_dicts
from momkd_ray.train.cuda_graphs import CudaGraphCache
from momkd_ray.train.epoch_metrics import VALUES, EpochRecord, no_rows, with_rows_of_all
from momkd_ray.train.fold_data import FoldData
from momkd_ray.train.memory_init import initialise_memory
from momkd_ray.train.prometheus import GaugeReporter
from momkd_ray.train.step import Stepper
from momkd_ray.train.task import FoldTask

CHECKPOINTS = "checkpoints"  # below the fold's folder

Report = Callable[[dict[str, Any]], None]


@dataclass
class TrainState:
    """Where a fold stands: the next step to take, and the best epoch so far."""

    epoch: int = 0
    step: int = 0  # position within the epoch
    rows_NV: Tensor = field(default_factory=no_rows)  # what the epoch's draws gave so far, of all workers
    best_auc: float = float("-inf")
    best_epoch: int = -1
    stale_epochs: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # a metrics line an epoch


def train_loop_per_worker(loop: dict[str, Any]) -> dict[str, Any] | None:
    """Train a fold to its end, going on from its newest checkpoint if there is one.

    Args:
        loop: `task` (a `FoldTask`), `report`, called with each epoch's metrics, and perhaps `stop`, asked by rank 0
            before each epoch whether to end here.

    Returns:
        `best_epoch` and `val_auc`; checkpoints, metrics and slide-level predictions lie in the fold's folder.
        None where it was stopped.
    """
    task: FoldTask = loop["task"]
    report: Report = loop["report"]
    set_determinism(task.config)
    training = FoldTraining(task, join_process_group())
    with training.checkpoints:
        progress = training.resume() or training.begin()
        while not training.finished(progress):
            if training.stopped(loop.get("stop")):
                return None
            metrics = training.epoch(progress)
            # where Tune's TensorBoard events lie on the axis, also of a fold that goes on
            report(metrics | {"timesteps_total": metrics["epoch"] + 1})
    return training.predict(progress)


def set_determinism(config: Config) -> None:
    """Threads, and in deterministic mode only operations that give the same bits every time."""
    torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    if config.train.deterministic:
        environment.set_defaults(environment.DETERMINISTIC_CUDA)
    torch.use_deterministic_algorithms(config.train.deterministic)


class FoldTraining:
    """One fold's model, optimiser and data on one worker."""

    def __init__(self, task: FoldTask, collective: Collective) -> None:
        config = task.config
        self.task, self.config, self.collective = task, config, collective
        self.device = device_of_worker(config.cluster.gpus_per_worker)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # another fold may have been trained in this process
        self.input = FoldData(task, collective, self.device)
        self.checkpoints = Checkpoints(storage.join(task.location, CHECKPOINTS), task.fingerprint)
        classes = (config.cohort.negative, config.cohort.positive)
        self.watch = GaugeReporter(config.run.dir, task.location, task.fold, collective.rank, classes)
        torch.manual_seed(derive_seed("weights", config.train.seed, task.fold) % 2**63)
        model = MoMKD(config.model, config.memory, config.loss, width=task.width, genes=task.genes)
        self.stepper = Stepper(model, config.train, collective, self.device)
        self.predicted = CudaGraphCache(lambda batch: self.model.predict(batch)[0], self.device, model.dropout_layers)
        self.scheduler = ReduceLROnPlateau(
            self.stepper.optimiser, "max", factor=config.train.lr_factor, patience=config.train.lr_patience
        )
        self.notes: list[str] = []  # told with the next epoch's metrics

    @property
    def model(self) -> MoMKD:
        """The model, without the wrapper of DDP."""
        return self.stepper.model

    def resume(self) -> TrainState | None:
        """Everything as the newest whole checkpoint has it, the same on every rank; None without one."""
        # what rank 0 sees is what all take: another may list the folder a moment later
        name = self.collective.gather(self.checkpoints.newest() if self.collective.rank == 0 else None)[0]
        for place in self.checkpoints.damaged:
            self.notes.append(f"the checkpoint {place} is damaged and was passed over for the one before it")
        if name is None:
            return None
        content = self.checkpoints.read(name)
        self.model.load_state_dict(content["model"])
        self.stepper.load_optimiser(content["optimiser"])
        self.scheduler.load_state_dict(content["scheduler"])
        progress = TrainState(**content["progress"])
        where = f"epoch {progress.epoch}" + (f", step {progress.step}" if progress.step else "")
        workers = "1 worker" if self.collective.world == 1 else f"{self.collective.world} workers"
        self.notes.append(f"fold {self.task.fold} goes on from {where} with {workers}")
        return progress

    def begin(self) -> TrainState:
        """The first position, the memory initialised."""
        initialise_memory(self.model, self.input, self.stepper.dtype)
        return TrainState()

    def finished(self, progress: TrainState) -> bool:
        """Whether the last epoch is done or the validation AUC has not risen for `patience` epochs."""
        train = self.config.train
        return progress.epoch >= train.epochs or progress.stale_epochs >= train.patience

    def stopped(self, stop: Callable[[], bool] | None) -> bool:
        """Whether the fold is to end here; rank 0 asks, so that all workers leave together."""
        return stop is not None and any(self.collective.gather(self.collective.rank == 0 and stop()))

    def epoch(self, progress: TrainState) -> dict[str, Any]:
        """Train an epoch from where it stands, validate, move scheduler and early stopping, and save all of it."""
        began = time.monotonic()
        plan = self.input.plan(progress.epoch)
        waits, saving_s = self._train_steps(progress, plan)
        trained = time.monotonic()
        record = EpochRecord(progress.rows_NV, plan, self.input.by_role["train"], set(self.task.omics))
        val = self._predict_bags("val")
        val_auc = patient_auc(val["y"], val["p_1"], val["patient_id"])
        metrics: dict[str, Any] = {
            "fold": self.task.fold,
            "epoch": progress.epoch,
            **record.losses(),
            "lr": self.stepper.optimiser.param_groups[0]["lr"],
            "train_auc": record.auc(),
            "val_auc": val_auc,
            "seconds_train": round(trained - began, 3),
            "seconds_first_batch": round(waits[0], 3) if waits else 0.0,
            "seconds_input_wait": round(sum(waits), 3),
            "seconds_checkpoint": round(saving_s, 3),
            "seconds_validate": round(time.monotonic() - trained, 3),
        }
        self.scheduler.step(val_auc)
        progress.stale_epochs += 1
        if val_auc > progress.best_auc:
            progress.best_auc, progress.best_epoch, progress.stale_epochs = val_auc, progress.epoch, 0
            progress.best_weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        progress.history.append(metrics)
        steps = record.steps(progress.epoch)
        progress.epoch, progress.step, progress.rows_NV = progress.epoch + 1, 0, no_rows()
        self.save(progress, steps)
        self.watch.epoch(metrics, self.model.memory, self.stepper.network)
        notes, self.notes = self.notes, []
        return metrics | {"best_val_auc": progress.best_auc, "workers": self.collective.world, "notes": notes}

    def predict(self, progress: TrainState) -> dict[str, Any]:
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

    def _train_steps(self, progress: TrainState, plan: list[Step]) -> tuple[list[float], float]:
        """The rest of the epoch's steps; for each the seconds this worker waited for its bags, and those of saving."""
        waits: list[float] = []
        saving_s = 0.0
        places: list[int] = []
        values: list[Tensor] = []
        for share in self.input.shares(plan, progress.step):
            began = time.monotonic() - share.waited_s
            waits.append(share.waited_s)
            batches = share.batches if share.draws else []
            values.append(self.stepper.step(batches, share.global_bags, filler=share.batches[0]))
            self.watch.step(batches, began, share.waited_s)
            places += [draw.position for draw in share.draws]
            progress.step += 1
            if progress.step % self.config.cluster.checkpoint_steps == 0 and progress.step < len(plan):
                began = time.monotonic()
                self._take_rows(progress, places, values)
                self.save(progress)
                saving_s += time.monotonic() - began
                places, values = [], []
        self._take_rows(progress, places, values)
        return waits, saving_s

    def _take_rows(self, progress: TrainState, places: Sequence[int], values: Sequence[Tensor]) -> None:
        """Put what every rank's draws gave into the epoch's rows."""
        progress.rows_NV = with_rows_of_all(progress.rows_NV, places, values, self.collective)
        total_N = progress.rows_NV[:, 1 + VALUES.index("total")]
        if not total_N.isfinite().all():
            raise DivergedError(
                f"fold {self.task.fold}: the loss is {total_N[~total_N.isfinite()][0]} in epoch {progress.epoch}; "
                "lower train.lr or train.clip_norm"
            )

    def save(self, progress: TrainState, steps: pd.DataFrame | None = None) -> None:
        """Rank 0 writes a checkpoint, and then what it covers: the metrics, and a finished epoch's steps."""
        if self.collective.rank != 0:
            return
        lines = "".join(json.dumps(line) + "\n" for line in progress.history)
        epoch = progress.epoch - 1

        def write_what_it_covers() -> None:
            if steps is not None:
                place = storage.join(self.task.location, "steps", f"epoch={epoch:04d}.parquet")
                storage.write_table(place, steps)
                storage.write_text(storage.join(self.task.location, "metrics.jsonl"), lines)

        content = {
            "progress": vars(progress),
            "model": self.model.state_dict(),
            "optimiser": self.stepper.optimiser.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        self.checkpoints.save(content, progress.epoch, progress.step, write_what_it_covers)

    def _predict_bags(self, role: str) -> pd.DataFrame:
        """Probabilities of every bag of a role."""
        self.model.eval()
        bags = self.input.by_role[role]
        mine = {place: self.predicted(batch.to(self.device))[0].tolist() for place, batch in self.input.each(role)}
        probabilities = merge_dicts(self.collective.gather(mine))
        table = pd.DataFrame({"slide_id": bags.slides, "patient_id": bags.patients, "y": bags.y})
        p_NY = np.array([probabilities[place] for place in range(len(bags.ids))])
        if not np.isfinite(p_NY).all():
            raise DivergedError(f"fold {self.task.fold}: the model predicts NaN; lower train.lr")
        for y in range(CLASSES):
            table[f"p_{y}"] = p_NY[:, y]
        return table


def patient_auc(y: pd.Series, p: pd.Series, patient: pd.Series) -> float:
    """AUC over patients, each the mean probability of its slides."""
    by_patient = pd.DataFrame({"y": y, "p": p, "patient": patient}).groupby("patient").mean()
    return float(roc_auc_score(by_patient["y"], by_patient["p"]))
