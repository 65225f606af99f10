"""Records the GPU's work on a batch as a CUDA graph and replays it for batches of about the same size.

A training step on a bag of some thousand patches is about five hundred short kernels, which the host launches several
times slower than the GPU runs them. A CUDA graph launches all of them at once, but only with the recorded addresses and
sizes. So batches are copied into static buffers, padded to the size of their size class. The padding holds patches
that exchange no messages and belong to no bag: no result depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from momkd_ray.batches.collate import BagBatch, to_device_async
from momkd_ray.batches.message_graph import MessageGraph
from momkd_ray.model.dropout import Layers, dropout_pieces
from momkd_ray.model.interface import MILModel
from momkd_ray.model.kernels import triton_works

MAX_RECORDED_PATCHES = 65_536
"""Above it the GPU computes longer than the host launches, and recording would only cost memory."""
CLASSES_AN_OCTAVE = 8
"""Size classes between a power of two and the next: a bag fills at least eight ninths of its buffers."""
MAX_RECORDED_GRAPHS = 256
"""Recorded graphs that are kept: a few MB each, besides the memory pool that they share."""


def padded_size(n: int) -> int:
    """Rounds n up to its size class: at most an eighth more, and even."""
    step = max(2, _octave(n) // (2 * CLASSES_AN_OCTAVE))
    return -(-n // step) * step


def _octave(n: int) -> int:
    """Returns the smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


class StaticBuffers:
    """Buffers into which batches are copied; the size classes below a power of two share their memory.

    Args:
        device: of the buffers.
        dropout_layers: the model's.
    """

    def __init__(self, device: torch.device, dropout_layers: Callable[[BagBatch], Layers]) -> None:
        self.device, self.dropout_layers = device, dropout_layers
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def load(self, batch: BagBatch) -> BagBatch:
        """Copies a batch into the buffers of its size class; the result is valid until the next call.

        The inputs of dropout are copied too, so that a replayed step draws new masks for every batch.
        """
        graph, bags = batch.graph, len(batch)
        patches, messages = len(batch.features_PD), len(graph.source_M)
        padded_P, padded_M = padded_size(patches), padded_size(messages)
        unpadded: dict[str, Any] = {
            name: self._copy(name, value, len(value))
            for name in ("labels_B", "targets_B", "targets_BY", "patches_B", "omics_RG", "omics_bag_R")
            if (value := getattr(batch, name)) is not None
        }
        padded = replace(
            batch,
            features_PD=self._copy("features_PD", batch.features_PD, padded_P),
            graph=MessageGraph(
                received_P1=self._copy("received_P1", graph.received_P1, padded_P + 1, messages),
                source_M=self._copy("source_M", graph.source_M, padded_M),
                sent_P1=self._copy("sent_P1", graph.sent_P1, padded_P + 1, messages),
                message_M=self._copy("message_M", graph.message_M, padded_M),
                target_M=self._copy("target_M", graph.target_M, padded_M),
            ),
            bag_of_patch_P=self._copy("bag_of_patch_P", batch.bag_of_patch_P, padded_P, bags),
            patches_per_bag=(*batch.patches_per_bag, padded_P - patches),
            messages_per_bag=(*batch.messages_per_bag, padded_M - messages),
            seeds=None if batch.seeds is None else (*batch.seeds, 0),
            **unpadded,
        )
        if padded.seeds is None:
            return padded
        pieces_L4 = to_device_async(dropout_pieces(padded.seeds, self.dropout_layers(padded)), self.device)
        return replace(padded, pieces_L4=self._copy("pieces_L4", pieces_L4, len(pieces_L4)))

    def _copy(self, name: str, value: Tensor, size: int, padding: int | None = None) -> Tensor:
        """Copies a tensor to the start of its buffer of `size` rows; None leaves the padding's old values."""
        octave = _octave(size)
        key = (name, octave, value.shape[1:], value.dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.zeros(octave, *value.shape[1:], dtype=value.dtype, device=self.device)
        buffer = self._buffers[key][:size]
        buffer[: len(value)].copy_(value, non_blocking=True)
        if padding is not None:
            buffer[len(value) :].fill_(padding)
        return buffer


class CudaGraphCache:
    """Calls `run`, recorded as a CUDA graph when a size class occurs for the second time (the first is a warm-up).

    Where recording is impossible, and for tiled or very large batches, `run` is called directly.

    Args:
        run: works on a batch on the device without synchronising, in the same way for all batches of a size class.
        device: of the batches.
        model: gives the dropout layers, and says whether it can be recorded.
    """

    def __init__(self, run: Callable[[BagBatch], Tensor], device: torch.device, model: MILModel) -> None:
        self._run, self._buffers = run, StaticBuffers(device, model.dropout_layers)
        self.possible = model.recordable and device.type == "cuda" and triton_works()
        self._seen: set[tuple[object, ...]] = set()
        self._recorded: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._settings: object = None

    def __call__(self, batch: BagBatch, settings: object = None) -> Tensor:
        """Returns `run(batch)`; recordings are discarded when `settings` change."""
        if not self.possible or batch.tiles or len(batch.features_PD) > MAX_RECORDED_PATCHES:
            return self._run(batch)
        if settings != self._settings:
            self._settings, self._recorded, self._seen = settings, {}, set()
        padded = self._buffers.load(batch)
        key = _size_class(padded)
        if key not in self._seen:
            if len(self._seen) < MAX_RECORDED_GRAPHS:
                self._seen.add(key)
            return self._run(padded)
        if key not in self._recorded:
            self._recorded[key] = self._record(padded)
        graph, values = self._recorded[key]
        graph.replay()
        return values.clone()

    def _record(self, padded: BagBatch) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # graphs are replayed one at a time, so all can share the first one's memory pool
        shared = next((recorded.pool() for recorded, _ in self._recorded.values()), None)
        # prefetch threads allocate and copy at the same time
        with torch.cuda.graph(graph, pool=shared, capture_error_mode="thread_local"):
            values = self._run(padded)
        return graph, values


def _size_class(padded: BagBatch) -> tuple[object, ...]:
    omics = None if padded.omics_RG is None else len(padded.omics_RG)
    return len(padded.features_PD), len(padded.graph.source_M), len(padded), omics, padded.features_PD.dtype
