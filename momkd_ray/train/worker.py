"""Trains one fold: the same function in a single process and in every worker of Ray Train."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from momkd_ray import storage
from momkd_ray.bags.disk_cache import take_notes
from momkd_ray.batches.sampling import Step
from momkd_ray.errors import DivergedError
from momkd_ray.model.gatv2 import reads_graph
from momkd_ray.model.interface import MILModel
from momkd_ray.model.registry import build_model
from momkd_ray.ray_runtime import environment
from momkd_ray.ray_runtime.hardware import count_equal, describe_hardware
from momkd_ray.seeds import derive_seed
from momkd_ray.train.checkpoints import Checkpoints, kept_weights
from momkd_ray.train.collectives import Collective, device_of_worker, from_rank_0, join_process_group, merge_dicts
from momkd_ray.train.cuda_graphs import CudaGraphCache
from momkd_ray.train.epoch_metrics import EpochRecord, empty_rows, gather_rows
from momkd_ray.train.fold_data import FoldData
from momkd_ray.train.model_init import initialise_model
from momkd_ray.train.prometheus import GaugeReporter, used_component_share
from momkd_ray.train.step import Stepper
from momkd_ray.train.task import FoldTask
from momkd_ray.train.threads import return_unused_memory, reuse_freed_memory, threads_of_worker
from momkd_ray.train.validation import criterion_of, validation_metrics

Report = Callable[[dict[str, Any]], None]


@dataclass
class TrainState:
    """The training position and the best epoch so far; part of every checkpoint.

    Attributes:
        epoch, step: the next step to take, within its epoch.
        rows_NV: losses and predictions of the epoch's draws so far, of all workers.
        best, best_epoch: the metric of the validation patients (`criterion_of`) and the number of the epoch that
            `train.keep` keeps; that of a refit is NaN.
        best_weights: of that epoch under `keep: best`; empty where they are the model's own.
        stale_epochs: epochs since then.
        history: one line of metrics per epoch.
        start_s: seconds before the first step in which the start was fitted to the training bags.
    """

    epoch: int = 0
    step: int = 0
    rows_NV: Tensor = field(default_factory=empty_rows)
    best: float = float("-inf")
    best_epoch: int = -1
    stale_epochs: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    start_s: float = 0.0


def train_loop_per_worker(loop: dict[str, Any]) -> dict[str, Any] | None:
    """Trains a fold to its end, then its refit; both resume from their newest checkpoints if there are any.

    Args:
        loop: `task` (a `FoldTask`); `report`, called with the metrics of each epoch, or None; optionally `stop`, called
            by rank 0 before each epoch, which returns whether to end the fold; optionally `refit`, the `FoldTask` that
            is trained next, without `report` and `stop`, since it validates nothing.

    Returns:
        Of `task`: `best_epoch` and `best`, its metric of the validation patients; the number of `epochs` trained, the
        `device`, the `machines` of the workers and the `precision` of the products; checkpoints, metrics and
        slide-level predictions of both are in their folders.
        None if the fold was stopped.
    """
    reuse_freed_memory()
    trained = _train(loop["task"], loop.get("report"), loop.get("stop"))
    if trained is not None and loop.get("refit") is not None:
        _train(loop["refit"], None, None)
    return trained


def _train(task: FoldTask, report: Report | None, stop: Callable[[], bool] | None) -> dict[str, Any] | None:
    set_determinism(task)
    training = FoldTraining(task, join_process_group())
    try:
        with training.checkpoints, closing(training.data):
            state = training.resume() or training.begin()
            while not training.finished(state):
                if training.stopped(stop):
                    return None
                metrics = training.run_epoch(state)
                if report is not None:
                    # the x axis of Tune's TensorBoard events, also after a resume
                    report(metrics | {"timesteps_total": metrics["epoch"] + 1})
        return training.predict(state)
    finally:
        training.gauges.close()
        return_unused_memory()


def set_determinism(task: FoldTask) -> None:
    """Sets PyTorch's threads, and in deterministic mode restricts it to reproducible operations."""
    config = task.config
    torch.set_num_threads(threads_of_worker(task))
    if config.train.deterministic:
        environment.set_defaults(environment.DETERMINISTIC_CUDA)
    # the call imports PyTorch's compiler, which takes seconds, also where it changes nothing
    if torch.are_deterministic_algorithms_enabled() != config.train.deterministic:
        torch.use_deterministic_algorithms(config.train.deterministic)


class FoldTraining:
    """Model, optimiser, data and checkpoints of one fold on one worker.

    Args:
        task: the fold.
        collective: communication with the other workers.
    """

    def __init__(self, task: FoldTask, collective: Collective) -> None:
        config = task.config
        self.task, self.config, self.collective = task, config, collective
        self.device = device_of_worker(config.cluster.gpus)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # another fold may have been trained in this process
        self.checkpoints = Checkpoints(task.directory.checkpoints, task.fingerprint)
        classes = config.cohort.class_names
        self.gauges = GaugeReporter(config.run.dir, task.fold, task.setting, collective.rank, classes)
        torch.manual_seed(derive_seed("weights", config.train.seed, task.fold) % 2**63)
        sizes = {"width": task.width, "genes": task.genes, "classes": task.classes}
        model = build_model(config.model, config.memory, config.loss, **sizes)
        reads = {
            "graph": reads_graph(model),
            "omics_to_predict": model.needs_omics_to_predict,
            "whole_steps": model.contrasts_bags,
        }
        self.data = FoldData(task, collective, self.device, **reads)
        self.stepper = Stepper(model, config.train, collective, self.device)
        self.predict_batch = CudaGraphCache(lambda batch: self.model.predict(batch)[0], self.device, model)
        self.scheduler = self._make_scheduler()
        self.notes: list[str] = []  # for the user, reported with the next epoch's metrics

    def _make_scheduler(self) -> ReduceLROnPlateau | OneCycleLR:
        train, optimiser = self.config.train, self.stepper.optimiser
        if train.schedule == "plateau":
            return ReduceLROnPlateau(optimiser, "max", factor=train.lr_factor, patience=train.lr_patience)
        steps = train.epochs * len(self.data.plan(0))
        return OneCycleLR(optimiser, train.lr, total_steps=steps, cycle_momentum=False)

    @property
    def model(self) -> MILModel:
        """The model without DDP's wrapper."""
        return self.stepper.model

    def resume(self) -> TrainState | None:
        """Restores the newest intact checkpoint, the same on every rank; None if there is none."""
        # rank 0 chooses for all: another rank may list the folder a moment later
        newest = self.checkpoints.newest() if self.collective.rank == 0 else None
        name: str | None = from_rank_0(self.collective, newest)
        for location in self.checkpoints.damaged:
            self.notes.append(f"the checkpoint {location} is damaged; the fold resumes from the one before it")
        if name is None:
            return None
        content = self.checkpoints.read(name)
        self.model.load_state_dict(content["model"])
        self.stepper.load_optimiser(content["optimiser"])
        self.scheduler.load_state_dict(content["scheduler"])
        state = TrainState(**content["progress"])
        state.best_weights = kept_weights(content) if self.config.train.keep == "best" else {}
        position = f"epoch {state.epoch}" + (f", step {state.step}" if state.step else "")
        workers = "1 worker" if self.collective.world == 1 else f"{self.collective.world} workers"
        self.notes.append(f"fold {self.task.fold} resumes from {position} with {workers}")
        return state

    def begin(self) -> TrainState:
        """Initialises what depends on the training data, such as the memory, and returns the first position."""
        began = time.monotonic()
        initialise_model(self.model, self.data, self.stepper.dtype)
        return TrainState(start_s=time.monotonic() - began)

    def finished(self, state: TrainState) -> bool:
        """Returns whether the last epoch is done, or under `keep: best` validation has not improved for long."""
        train = self.config.train
        return state.epoch >= train.epochs or (train.keep == "best" and state.stale_epochs >= train.patience)

    def stopped(self, stop: Callable[[], bool] | None) -> bool:
        """Returns whether the fold is to end here; rank 0 asks, so that all workers end together."""
        return stop is not None and any(self.collective.gather(self.collective.rank == 0 and stop()))

    def run_epoch(self, state: TrainState) -> dict[str, Any]:
        """Trains the rest of an epoch, validates, updates learning rate and early stopping, and saves a checkpoint.

        Returns:
            The epoch's line of metrics, with the best metric of the validation patients so far, the number of workers,
            and notes for the user.
        """
        began = time.monotonic()
        plan = self.data.plan(state.epoch)
        waits, saving_s = self._train_steps(state, plan)
        trained = time.monotonic()
        record = EpochRecord(
            state.rows_NV, plan, self.data.by_role["train"], set(self.task.omics), self.model, self.task.classes
        )
        val = self._predict_role("val", state.epoch)
        of_val, criterion = validation_metrics(self.task, val), criterion_of(self.config)
        chosen_by = of_val.get(criterion.metric)  # a refit has no validation patients
        metrics: dict[str, Any] = {
            "fold": self.task.fold,
            "epoch": state.epoch,
            **record.losses(),
            "lr": self.stepper.optimiser.param_groups[0]["lr"],
            "train_auc": record.auc(),
            **of_val,
            **{f"memory_use_{y}": share for y, share in enumerate(used_component_share(self.model.memory))},
            "seconds_start": round(state.start_s, 3) if state.epoch == 0 else 0.0,
            "seconds_train": round(trained - began, 3),
            "seconds_first_batch": round(waits[0], 3) if waits else 0.0,
            "seconds_input_wait": round(sum(waits), 3),
            "seconds_checkpoint": round(saving_s, 3),
            "seconds_validate": round(time.monotonic() - trained, 3),
        }
        if isinstance(self.scheduler, ReduceLROnPlateau):
            assert chosen_by is not None
            self.scheduler.step(chosen_by)
        state.stale_epochs += 1
        if self.config.train.keep == "last" or (chosen_by is not None and chosen_by > state.best):
            state.best = float("nan") if chosen_by is None else chosen_by
            state.best_epoch, state.stale_epochs = state.epoch, 0
            if self.config.train.keep == "best":
                state.best_weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        state.history.append(metrics)
        steps = record.steps(state.epoch)
        state.epoch, state.step, state.rows_NV = state.epoch + 1, 0, empty_rows()
        self.save(state, steps)
        self.gauges.record_epoch(metrics, self.model.memory, self.stepper.network)
        notes, self.notes = [*self.notes, *take_notes()], []
        return metrics | {f"best_{criterion.metric}": state.best, "workers": self.collective.world, "notes": notes}

    def predict(self, state: TrainState) -> dict[str, Any]:
        """Predicts validation and test slides with the weights that are kept; rank 0 writes them."""
        if state.best_weights:
            self.model.load_state_dict(state.best_weights)
        for role in ("val", "test"):
            if not self.data.by_role[role].ids:
                continue
            slides = self._with_class_names(self._predict_role(role))
            if self.collective.rank == 0:
                storage.write_table(self.task.directory.slides(role), slides)
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        return {
            "best_epoch": state.best_epoch,
            "best": state.best,
            "epochs": state.epoch,
            "device": gpu or "CPU",
            "machines": count_equal(self.collective.gather(describe_hardware(gpu))),
            "precision": "bf16" if self.stepper.dtype == torch.bfloat16 else "fp32",
        }

    def _with_class_names(self, slides: pd.DataFrame) -> pd.DataFrame:
        """Replaces class numbers by the user's class names, in the label and in the names of columns."""
        classes = self.config.cohort.class_names
        named = slides.assign(label=[classes[y] for y in slides["y"]])
        named = named.rename(columns={f"p_{y}": f"p_{name}" for y, name in enumerate(classes)})
        return named[["slide_id", "patient_id", "label", *(f"p_{name}" for name in classes)]]

    def _train_steps(self, state: TrainState, plan: list[Step]) -> tuple[list[float], float]:
        """Trains the rest of the epoch's steps.

        Returns:
            For each step the seconds that this worker waited for its bags, and the seconds spent on checkpoints.
        """
        waits: list[float] = []
        saving_s = 0.0
        positions: list[int] = []
        values: list[Tensor] = []
        patches = self.data.by_role["train"].patches
        for share in self.data.shares(plan, state.step, state.epoch):
            began = time.monotonic()
            passes, bags = len(share.passes), share.global_bags
            values.append(self.stepper.step(share.batches(), bags, passes, fills_in=not share.draws))
            if isinstance(self.scheduler, OneCycleLR):
                self.scheduler.step()
            waits.append(share.waited_s)
            self.gauges.record_step([patches[draw.bag] for draw in share.draws], began, share.waited_s)
            positions += [draw.position for draw in share.draws]
            state.step += 1
            if state.step % self.config.cluster.checkpoint_steps == 0 and state.step < len(plan):
                began = time.monotonic()
                self._gather_rows(state, positions, values)
                self.save(state)
                saving_s += time.monotonic() - began
                positions, values = [], []
        self._gather_rows(state, positions, values)
        return waits, saving_s

    def _gather_rows(self, state: TrainState, positions: Sequence[int], values: Sequence[Tensor]) -> None:
        """Adds the losses and predictions of every rank's draws to the epoch's rows."""
        state.rows_NV = gather_rows(state.rows_NV, positions, values, self.collective)
        total_N = state.rows_NV[:, 1 + self.model.loss_names.index("total")]
        if not total_N.isfinite().all():
            raise DivergedError(
                f"fold {self.task.fold}: the loss is {total_N[~total_N.isfinite()][0]} in epoch {state.epoch}; "
                "lower train.lr or train.clip_norm"
            )

    def save(self, state: TrainState, steps: pd.DataFrame | None = None) -> None:
        """Writes a checkpoint (rank 0), and after it the metrics and the finished epoch's steps that it covers."""
        if self.collective.rank != 0:
            return
        lines = "".join(json.dumps(line) + "\n" for line in state.history)
        epoch = state.epoch - 1

        def write_metrics() -> None:
            if steps is not None:
                storage.write_table(self.task.directory.steps(epoch), steps)
                storage.write_text(self.task.directory.metrics, lines)

        are_best = state.step == 0 and state.best_epoch == epoch
        content = {
            "progress": vars(state) | ({"best_weights": {}} if are_best else {}),
            "model": self.model.state_dict(),
            "optimiser": self.stepper.optimiser.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }
        self.checkpoints.save(content, state.epoch, state.step, write_metrics)

    def _predict_role(self, role: str, epoch: int | None = None) -> pd.DataFrame:
        """Predicts the class probabilities of every bag of a role; `epoch` is the one that it validates."""
        self.model.eval()
        bags = self.data.by_role[role]
        batches = self.data.single(role, epoch=epoch)
        own = {index: self.predict_batch(batch.to(self.device))[0].tolist() for index, batch in batches}
        probabilities = merge_dicts(self.collective.gather(own))
        table = pd.DataFrame({"slide_id": bags.slides, "patient_id": bags.patients, "y": bags.y})
        p_NY = np.array([probabilities[index] for index in range(len(bags.ids))]).reshape(-1, self.task.classes)
        if not np.isfinite(p_NY).all():
            raise DivergedError(f"fold {self.task.fold}: the model predicts NaN; lower train.lr")
        for y in range(self.task.classes):
            table[f"p_{y}"] = p_NY[:, y]
        return table
