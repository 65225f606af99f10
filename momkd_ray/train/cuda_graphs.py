"""What a GPU does with a bag, recorded for bags of about one size and then replayed.

A training step of a bag of some thousand patches is five hundred short kernels, which a host starts several times
slower than a GPU runs them. A CUDA graph starts them all at once. It can only do again what was recorded, at the same
addresses, so bags are copied into buffers with room for as many patches and messages as their size class has. The room
left over holds patches that exchange no messages and belong to no bag: no result depends on what lies there.
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
from momkd_ray.model.kernels import triton_works

MAX_RECORDED_PATCHES = 65_536
"""Beyond it a GPU computes longer than a host needs to start it all, and recording would only take memory."""
CLASSES_AN_OCTAVE = 8
"""Sizes between a power of two and the next: a bag fills eight ninths of its room at least."""
MAX_RECORDED_GRAPHS = 256
"""Recordings kept: a few MB each beside the memory that they share."""


def padded_size(n: int) -> int:
    """The size class of n: at most an eighth more, and even."""
    step = max(2, _octave(n) // (2 * CLASSES_AN_OCTAVE))
    return -(-n // step) * step


def _octave(n: int) -> int:
    """The power of two that holds n."""
    return 1 << max(n - 1, 0).bit_length()


class StaticBuffers:
    """Buffers that batches of a size class are copied into; classes of one power of two share their memory."""

    def __init__(self, device: torch.device, dropout_layers: Callable[[BagBatch], Layers]) -> None:
        self.device, self.dropout_layers = device, dropout_layers
        self._held: dict[tuple[object, ...], Tensor] = {}

    def holding(self, batch: BagBatch) -> BagBatch:
        """The batch at the addresses of its size class, with room left over; until the next one is put there.

        What dropout draws from lies there too, so that a recorded step draws anew for every batch.
        """
        graph, bags = batch.graph, len(batch)
        patches, messages = len(batch.features_PD), len(graph.source_M)
        rows, places = padded_size(patches), padded_size(messages)
        exact: dict[str, Any] = {
            name: self._copied(name, value, len(value))
            for name in ("labels_B", "patches_B", "omics_RG", "omics_bag_R")
            if (value := getattr(batch, name)) is not None
        }
        roomy = replace(
            batch,
            features_PD=self._copied("features_PD", batch.features_PD, rows),
            graph=MessageGraph(
                received_P1=self._copied("received_P1", graph.received_P1, rows + 1, messages),
                source_M=self._copied("source_M", graph.source_M, places),
                sent_P1=self._copied("sent_P1", graph.sent_P1, rows + 1, messages),
                message_M=self._copied("message_M", graph.message_M, places),
                target_M=self._copied("target_M", graph.target_M, places),
            ),
            bag_of_patch_P=self._copied("bag_of_patch_P", batch.bag_of_patch_P, rows, bags),
            patches_per_bag=(*batch.patches_per_bag, rows - patches),
            messages_per_bag=(*batch.messages_per_bag, places - messages),
            seeds=None if batch.seeds is None else (*batch.seeds, 0),
            **exact,
        )
        if roomy.seeds is None:
            return roomy
        pieces_L4 = to_device_async(dropout_pieces(roomy.seeds, self.dropout_layers(roomy)), self.device)
        return replace(roomy, pieces_L4=self._copied("pieces_L4", pieces_L4, len(pieces_L4)))

    def _copied(self, name: str, value: Tensor, room: int, beyond: int | None = None) -> Tensor:
        """The tensor at the begin of its buffer; `beyond` it, one value or what was there before."""
        octave = _octave(room)
        key = (name, octave, value.shape[1:], value.dtype)
        if key not in self._held:
            self._held[key] = torch.zeros(octave, *value.shape[1:], dtype=value.dtype, device=self.device)
        there = self._held[key][:room]
        there[: len(value)].copy_(value, non_blocking=True)
        if beyond is not None:
            there[len(value) :].fill_(beyond)
        return there


class CudaGraphCache:
    """What `run` does and gives, recorded when a size comes for the second time: the first time warms it up.

    Where nothing can be recorded, and of bags in tiles or of very many patches, it is run as it is.

    Args:
        run: works on a batch on the device, without waiting for it, and in the same way for all batches of a size.
        device: the batches'.
        noisy_layers: the model's.
    """

    def __init__(
        self, run: Callable[[BagBatch], Tensor], device: torch.device, dropout_layers: Callable[[BagBatch], Layers]
    ) -> None:
        self._run, self._room = run, StaticBuffers(device, dropout_layers)
        self.possible = device.type == "cuda" and triton_works()
        self._seen: set[tuple[object, ...]] = set()
        self._recorded: dict[tuple[object, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._settings: object = None

    def __call__(self, batch: BagBatch, settings: object = None) -> Tensor:
        """What `run` does and gives for a batch; a recording holds as long as the settings are the same."""
        if not self.possible or batch.tiles or len(batch.features_PD) > MAX_RECORDED_PATCHES:
            return self._run(batch)
        if settings != self._settings:
            self._settings, self._recorded, self._seen = settings, {}, set()
        roomy = self._room.holding(batch)
        key = _size_class(roomy)
        if key not in self._seen:
            if len(self._seen) < MAX_RECORDED_GRAPHS:
                self._seen.add(key)
            return self._run(roomy)
        if key not in self._recorded:
            self._recorded[key] = self._record(roomy)
        graph, values = self._recorded[key]
        graph.replay()
        return values.clone()

    def _record(self, roomy: BagBatch) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        graph = torch.cuda.CUDAGraph()
        # recordings run one at a time, so that all share the first one's memory
        shared = next((recorded.pool() for recorded, _ in self._recorded.values()), None)
        # threads that read ahead allocate and copy meanwhile
        with torch.cuda.graph(graph, pool=shared, capture_error_mode="thread_local"):
            values = self._run(roomy)
        return graph, values


def _size_class(roomy: BagBatch) -> tuple[object, ...]:
    omics = None if roomy.omics_RG is None else len(roomy.omics_RG)
    return len(roomy.features_PD), len(roomy.graph.source_M), len(roomy), omics, roomy.features_PD.dtype
