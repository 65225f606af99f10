"""Copies batches to a GPU on a stream of its own, while the GPU computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from momkd_ray.batches.collate import BagBatch


@dataclass(frozen=True)
class PendingBatch:
    """A batch whose copy to a device may still be running."""

    batch: BagBatch
    copied: torch.cuda.Event | None

    def wait(self) -> BagBatch:
        """Returns the batch; the device's current stream waits for the copy, the calling thread does not."""
        if self.copied is None:
            return self.batch
        computing = torch.cuda.current_stream(self.batch.features_PD.device)
        computing.wait_event(self.copied)

        def record(x: Tensor) -> Tensor:
            # allocated on the copying stream: its memory may not be reused before the computation queued here is done
            x.record_stream(computing)
            return x

        return self.batch.map_tensors(record)


class Transfer:
    """Copies batches to one device; for the CPU it passes them through."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(self, batch: BagBatch) -> PendingBatch:
        """Starts the asynchronous copy of a batch in pinned memory; may be called from any thread."""
        if self._stream is None:
            return PendingBatch(batch, None)
        with torch.cuda.stream(self._stream):
            on_device = batch.to(self.device, batch.features_PD.dtype)
            return PendingBatch(on_device, self._stream.record_event())
