"""PyTorch's AdamW without the import of PyTorch's compiler, of which nothing here is compiled."""

from __future__ import annotations

import inspect
from typing import Any

import torch


def _unwrapped(name: str) -> Any:
    """Returns a method of PyTorch's AdamW as it was written, without what surrounds it for the compiler."""
    return inspect.unwrap(getattr(torch.optim.AdamW, name))


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, to the last digit.

    PyTorch surrounds these methods with what keeps its compiler out of them, and imports the compiler for it: two and a
    half seconds of a CPU, a third of all that a fold's process imports.
    """

    add_param_group = _unwrapped("add_param_group")
    zero_grad = _unwrapped("zero_grad")
    state_dict = _unwrapped("state_dict")
    load_state_dict = _unwrapped("load_state_dict")
    step = torch.no_grad()(_unwrapped("step"))
