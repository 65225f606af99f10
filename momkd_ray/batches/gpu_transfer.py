"""Batches on their way to a GPU while it computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from momkd_ray.batches.collate import BagBatch


@dataclass(frozen=True)
class Arriving:
    """A batch that is being copied to a device."""

    batch: BagBatch
    copied: torch.cuda.Event | None

    def arrived(self) -> BagBatch:
        """The batch, for what the calling thread lets its device do from now on; the thread itself does not wait."""
        if self.copied is None:
            return self.batch
        computing = torch.cuda.current_stream(self.batch.features_PD.device)
        computing.wait_event(self.copied)

        def held(x: Tensor) -> Tensor:
            x.record_stream(computing)  # its memory was taken on another stream, and must outlast what is queued here
            return x

        return self.batch.each(held)


class Transfer:
    """The way to a device, beside what it computes; to a CPU there is none."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(self, batch: BagBatch) -> Arriving:
        """Begin to copy a batch in pinned memory; from any thread."""
        if self._stream is None:
            return Arriving(batch, None)
        with torch.cuda.stream(self._stream):
            there = batch.to(self.device, batch.features_PD.dtype)
            return Arriving(there, self._stream.record_event())
