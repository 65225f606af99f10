"""Converts checkpoints of the authors' released implementation; all sizes follow from the weights' shapes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig
from momkd_ray.errors import InputError
from momkd_ray.model.momkd import MoMKD

NEIGHBORS = 8
"""k of the patch graphs that the released models were trained on."""
_LINEAR = ("weight", "bias")
_MODULES = {
    "slide_encoder.residual1": "wsi_encoder.res_proj1",
    "slide_encoder.norm1": "wsi_encoder.ln1",
    "slide_encoder.norm2": "wsi_encoder.ln2",
    "omics_encoder.linear1": "rna_tower.encoder.0",
    "omics_encoder.norm": "rna_tower.encoder.1",
    "omics_encoder.linear2": "rna_tower.encoder.4",
    "omics_decoder.linear1": "rna_decoder.decoder.0",
    "omics_decoder.norm": "rna_decoder.decoder.1",
    "omics_decoder.linear2": "rna_decoder.decoder.4",
    "project_omics": "rna_projector",
    "project_patch": "wsi_patch_projector",
    "project_slide": "wsi_pool_projector",
    "classifier_norm": "wsi_classifier_proto.0",
    "classifier1": "wsi_classifier_proto.1",
    "classifier2": "wsi_classifier_proto.4",
}
_GAT_PARTS = ("att", "bias", "lin_l.weight", "lin_l.bias", "lin_r.weight", "lin_r.bias")
RELEASED_NAMES: dict[str, str] = (
    {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in _MODULES.items() for part in _LINEAR}
    | {f"slide_encoder.{g}.{p}": f"wsi_encoder.{g}.{p}" for g in ("gat1", "gat2") for p in _GAT_PARTS}
    | {"log_tau": "attn_log_tau"}
)
"""Our parameter name -> the released one, for all parameters but the memory."""
RELEASED_MEMORY = ("mem_neg._codebook.embed", "mem_pos._codebook.embed")
"""Released names of the memories of class 0 and class 1, (1, K, S) each."""


RELEASED_LOSSES = LossConfig(task=0.5, align_slide=0.2, align_omics=0.05, reconstruction=0.05, memory=0.1)
"""The weights of the losses in the released code."""


def model_from_released(state: Mapping[str, Tensor], *, dropout: float = 0.5, omics_dropout: float = 0.25) -> MoMKD:
    """Builds the model of a released state dict, with memory rule `gradient`.

    Raises:
        InputError: a parameter is missing or its shape does not fit the others.
    """
    missing = sorted({*RELEASED_NAMES.values(), *RELEASED_MEMORY} - set(state))
    if missing:
        raise InputError(
            f"this is not a checkpoint of the released MoMKD: it has no '{missing[0]}'"
            + (f" and {len(missing) - 1} other parameters" if len(missing) > 1 else "")
        )
    try:
        hidden, width = state["wsi_encoder.gat1.lin_l.weight"].shape
        omics_hidden, genes = state["rna_tower.encoder.0.weight"].shape
        _, components, shared = state[RELEASED_MEMORY[0]].shape
        _, heads, _ = state["wsi_encoder.gat1.att"].shape
    except ValueError as error:
        raise InputError("the checkpoint's shapes do not fit together: a weight has too few dimensions") from error
    model = MoMKD(
        ModelConfig(
            pooling="attention",
            hidden=hidden,
            heads=heads,
            shared=shared,
            dropout=dropout,
            omics_hidden=omics_hidden,
            omics_embedding=state["rna_tower.encoder.4.weight"].shape[0],
            omics_dropout=omics_dropout,
            classifier_hidden=state["wsi_classifier_proto.1.weight"].shape[0],
        ),
        MemoryConfig(rule="gradient", components=components),
        RELEASED_LOSSES,
        width=width,
        genes=genes,
    )
    ours = {name: state[theirs] for name, theirs in RELEASED_NAMES.items()}
    ours["memory.raw_parameter_YKS"] = torch.cat([state[name] for name in RELEASED_MEMORY])
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"the checkpoint's shapes do not fit together: {reason}") from error
    return model


def read_released(path: str) -> MoMKD:
    """Reads a `.pt` file: a state dict, or one under the key `model`, `state_dict` or `model_state_dict`.

    Only tensors are unpickled (`weights_only=True`).

    Raises:
        InputError: no such file, not a checkpoint, or not one of MoMKD.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint of plain tensors: {reason}") from error
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path} holds no state dict of tensors")
    return model_from_released({k.removeprefix("module."): v for k, v in state.items()})
