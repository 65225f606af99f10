"""The checkpoints of a fold: written in the background, named by their content, read only if intact."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any, Self

import torch
from torch import Tensor

from momkd_ray import storage
from momkd_ray.errors import InputError, RunError
from momkd_ray.storage.process_identity import host_name

KEPT = 2  # the newest, and the one before in case the newest is damaged
VISIBLE_WITHIN_S = 30.0
_SUFFIX = ".pt"


class Checkpoints:
    """The checkpoints in one folder, local or on S3; a context manager that ends with all of them written.

    A file `<epoch>-<step>-<first digits of its SHA-256>.pt` is a plain `torch.save` of tensors and values. It appears
    only when complete, and a file that was damaged later no longer matches its name.

    Args:
        folder: of the checkpoints, a local path or `s3://` URI.
        fingerprint: of the run; checkpoints with another one are refused.
    """

    def __init__(self, folder: str, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.damaged: list[str] = []  # files that `newest` skipped
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, content: dict[str, Any], epoch: int, step: int, then: Callable[[], None] | None = None) -> None:
        """Copies the content and writes it in the background, after the previous checkpoint is written.

        Args:
            content: tensors on any device, and plain values.
            epoch: position in training, by which the files are sorted.
            step: position within the epoch.
            then: called in the background once the file is complete.

        Raises:
            RunError: the previous checkpoint could not be written.
        """
        self.wait()
        copied = _copied({"fingerprint": self.fingerprint, **content})
        self._writing = self._writer.submit(self._write, copied, f"{epoch:05d}-{step:07d}", then)

    def wait(self) -> None:
        """Waits until everything is written; raises the writer's error."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Waits for the writer and ends it, also after an error, which then takes precedence over the writer's."""
        try:
            with suppress(Exception) if error is not None else nullcontext():
                self.wait()
        finally:
            self._writer.shutdown()

    def newest(self) -> str | None:
        """Returns the name of the newest intact checkpoint; None if there is none."""
        for name in reversed(self._names()):
            if self._content(name) is not None:
                return name
            self.damaged.append(storage.join(self.folder, name))
        return None

    def read(self, name: str) -> dict[str, Any]:
        """Reads a checkpoint to the CPU; only tensors and plain values are unpickled.

        Raises:
            InputError: it belongs to another configuration or other data.
            RunError: it is not visible on this node.
        """
        location = storage.join(self.folder, name)
        serialised = self._content(name)
        deadline = time.monotonic() + VISIBLE_WITHIN_S
        while serialised is None and time.monotonic() < deadline:  # network file systems show it to other nodes late
            time.sleep(VISIBLE_WITHIN_S / 30)
            serialised = self._content(name)
        if serialised is None:
            raise RunError(
                f"the worker on {host_name()} does not see {location}, which another has written "
                f"({VISIBLE_WITHIN_S:.0f} s waited): mount that folder on every node, or set run.dir to a folder that "
                "all nodes share, such as s3://, then run again"
            )
        content: dict[str, Any] = torch.load(io.BytesIO(serialised), map_location="cpu", weights_only=True)
        if content["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{location} was written by a run of another configuration or other data; choose another run.dir"
            )
        return content

    def remove_all(self) -> None:
        """Removes every checkpoint, and temporary files of an interrupted writer."""
        for name in storage.list_names(self.folder):
            storage.delete(storage.join(self.folder, name))

    def _names(self) -> list[str]:
        names = storage.list_names(self.folder)
        return [name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]

    def _content(self, name: str) -> bytes | None:
        """Returns the bytes of a file whose digest matches its name; None if it is missing or damaged."""
        try:
            content = storage.read_bytes(storage.join(self.folder, name))
        except FileNotFoundError:
            return None
        return content if name.removesuffix(_SUFFIX).rpartition("-")[2] == _digest(content) else None

    def _write(self, content: dict[str, Any], position: str, then: Callable[[], None] | None) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        serialised = buffer.getvalue()
        name = f"{position}-{_digest(serialised)}{_SUFFIX}"
        storage.write_bytes(storage.join(self.folder, name), serialised)
        if then is not None:
            then()
        older = [other for other in self._names() if other < position]
        for other in older[: 1 - KEPT]:
            storage.delete(storage.join(self.folder, other))


def kept_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the weights that `train.keep` keeps, from the content of a checkpoint.

    A checkpoint whose own weights are those holds them once: its `best_weights` are empty.
    """
    best: dict[str, Tensor] = content["progress"]["best_weights"]
    return best or content["model"]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _copied(value: Any) -> Any:
    """Copies every tensor of a nested value to the CPU, so that training can overwrite the original."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value
