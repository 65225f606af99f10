"""The checkpoints of a fold: written beside the training, named by their content, read only if they are whole."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any, Self

import torch
from torch import Tensor

from momkd_ray import storage
from momkd_ray.errors import InputError

KEPT = 2  # the newest, and the one before for when it turns out damaged
_SUFFIX = ".pt"


class Checkpoints:
    """The checkpoints in one folder, local or on S3.

    A file is `<epoch>-<step>-<the first digits of its SHA-256>.pt`, a plain `torch.save` of tensors and values: it
    appears only whole, and one that was damaged since does not fit its name.
    """

    def __init__(self, folder: str, fingerprint: str) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.damaged: list[str] = []  # what `newest` had to pass over
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, content: dict[str, Any], epoch: int, step: int, then: Callable[[], None] | None = None) -> None:
        """Copy the content now and write it in the background; what was being written before is waited for.

        Args:
            content: tensors on any device, and plain values.
            epoch: the position, which the files sort by.
            step: within the epoch.
            then: called in the background once the file is there.

        Raises:
            RunError: the one before could not be written.
        """
        self.wait()
        copied = _copied({"fingerprint": self.fingerprint, **content})
        self._writing = self._writer.submit(self._write, copied, f"{epoch:05d}-{step:07d}", then)

    def wait(self) -> None:
        """Until everything is written; raises what went wrong."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """What is being written is finished, also after an error, which then is the one to tell."""
        with suppress(Exception) if error is not None else nullcontext():
            self.wait()

    def newest(self) -> str | None:
        """The name of the newest checkpoint that is whole; None where there is none."""
        for name in reversed(self._names()):
            if self._content(name) is not None:
                return name
            self.damaged.append(storage.join(self.folder, name))
        return None

    def read(self, name: str) -> dict[str, Any]:
        """The content of a checkpoint, on the CPU; only tensors and plain values are unpickled.

        Raises:
            InputError: it belongs to another configuration or other data, or is not to be seen from here.
        """
        place = storage.join(self.folder, name)
        content = self._content(name)
        if content is None:
            raise InputError(f"not every worker sees {place}: put run.dir where all nodes see it, such as s3://")
        found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if found["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{place} was written by a run of another configuration or other data; choose another run.dir"
            )
        return found

    def remove_all(self) -> None:
        """Remove every checkpoint, and what an interrupted writer left."""
        for name in storage.list_names(self.folder):
            storage.delete(storage.join(self.folder, name))

    def _names(self) -> list[str]:
        names = storage.list_names(self.folder)
        return [name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]

    def _content(self, name: str) -> bytes | None:
        """The bytes of a file that fits its name."""
        try:
            content = storage.read_bytes(storage.join(self.folder, name))
        except FileNotFoundError:
            return None
        return content if name.removesuffix(_SUFFIX).rpartition("-")[2] == _digest(content) else None

    def _write(self, content: dict[str, Any], position: str, then: Callable[[], None] | None) -> None:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        written = buffer.getvalue()
        name = f"{position}-{_digest(written)}{_SUFFIX}"
        storage.write_bytes(storage.join(self.folder, name), written)
        if then is not None:
            then()
        older = [other for other in self._names() if other < position]
        for other in older[: 1 - KEPT]:
            storage.delete(storage.join(self.folder, other))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _copied(value: Any) -> Any:
    """The same value with every tensor in memory of its own, so that training may go on over the old one."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value
