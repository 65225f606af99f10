"""An ensemble as one self-contained network of plain PyTorch operations, saved as ONNX or as a PyTorch program.

Inputs: `features` (P, D) float32 and, for models with a patch graph, `edges` (2, E) int64: from each patch (row 0) to
its nearest neighbours (row 1), without self-loops. Outputs: `probabilities` (Y,) and `attention` (P,).
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from momkd_ray import storage
from momkd_ray.batches.collate import collate
from momkd_ray.errors import InputError, RunError
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import csr_graph
from momkd_ray.model.baselines.abmil import ABMIL
from momkd_ray.model.baselines.acmil import ACMIL
from momkd_ray.model.bundle import BundleCard
from momkd_ray.model.component_momkd import ComponentMoMKD
from momkd_ray.model.gatv2 import GATv2, PatchLayer
from momkd_ray.model.interface import MILModel
from momkd_ray.model.kernels.linear import Linear
from momkd_ray.model.kernels.reference import SLOPE, residual_block
from momkd_ray.model.momkd import MoMKD
from momkd_ray.model.tissue_components import nearness

OPSET = 18  # the first whose scatter has a maximum
TOLERANCE = 1e-4  # of probabilities, between the bundle and what was exported
CHECKED_SIZES = (7, 61)  # patches of the bags that an export is checked on

Floats = NDArray[np.float32]


class Program(nn.Module):
    """The mean of several models' probabilities and attention, in evaluation mode.

    Args:
        models: of one family; they are copied.
        graph: whether their bags have a graph of neighbours.

    Raises:
        InputError: a model has operations that cannot be written down as a program.
    """

    def __init__(self, models: Sequence[MILModel], *, graph: bool = True) -> None:
        super().__init__()
        for model in models:
            known = isinstance(model, (ComponentMoMKD, MoMKD, ABMIL, ACMIL)) and not model.needs_omics_to_predict
            if not known:
                raise InputError(
                    f"a model of type {model.model_config.name} cannot be written as ONNX or pt2: momkd, abmil, "
                    "gated_abmil, clam_sb, acmil, soft_labels and batch_alignment can; use --format zip"
                )
        self.models = nn.ModuleList([_plain(model) for model in models])
        self.has_graph = graph and isinstance(models[0], MoMKD) and models[0].model_config.graph

    def forward(self, features: Tensor, edges: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predicts one bag."""
        results = [_predict(cast(MILModel, model), features, edges) for model in self.models]
        probabilities = torch.stack([p for p, _ in results]).mean(dim=0)
        return probabilities, torch.stack([a for _, a in results]).mean(dim=0)


def _plain(model: MILModel) -> MILModel:
    """Copies a model with PyTorch's own linear layers, whose operations every exporter knows."""
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, Linear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
    return copied.requires_grad_(False)


def _predict(model: MILModel, features_PD: Tensor, edges_2E: Tensor | None) -> tuple[Tensor, Tensor]:
    if isinstance(model, MoMKD):
        edges_2E = torch.zeros(2, 0, dtype=torch.int64) if edges_2E is None else edges_2E
        context_PH = _encode(model, features_PD, edges_2E)
        _, score_P = model.attention_scores(context_PH, model.memory.components)
        attention_P = score_P.softmax(dim=0)
        logits_1Y = model._classify(attention_P[None] @ context_PH, {})
    elif isinstance(model, ComponentMoMKD):
        temperature = model.model_config.pooling_temperature
        weight_PK = nearness(model.points(features_PD), model.centre_KJ, temperature).softmax(dim=0)
        pooled_1KD = ((weight_PK.T @ features_PD - model.mean_KD) / model.scale_KD)[None]
        attention_P, logits_1Y = weight_PK.mean(dim=1), model.classify(pooled_1KD, model.encode(pooled_1KD))
    else:
        readout = model.readout(cast(Any, SimpleNamespace(features_PD=features_PD)))
        assert readout is not None
        attention_P, logits_1Y = readout.attention_P, readout.classify(readout.pooled_1H)
    return logits_1Y.softmax(dim=-1)[0], attention_P


def _encode(model: MoMKD, x_PD: Tensor, edges_2E: Tensor) -> Tensor:
    """Computes what `SlideEncoder` computes (docs/method.md §2)."""
    encoder = model.slide_encoder
    loops_P = torch.arange(x_PD.shape[0], device=x_PD.device)
    source_M, target_M = torch.cat([edges_2E[0], loops_P]), torch.cat([edges_2E[1], loops_P])
    received_PH = _gat(encoder.gat1, x_PD, source_M, target_M)
    norm1, norm2 = encoder.norm1, encoder.norm2
    h1_PH = residual_block(received_PH, encoder.residual1(x_PD), norm1.weight, norm1.bias, 1.0, None)
    received_PH = _gat(encoder.gat2, h1_PH, source_M, target_M)
    return residual_block(received_PH, h1_PH, norm2.weight, norm2.bias, 0.0, None)


def _gat(layer: GATv2, x_PF: Tensor, source_M: Tensor, target_M: Tensor) -> Tensor:
    """Computes one GATv2 layer with scatters."""
    if isinstance(layer, PatchLayer):
        own_PH: Tensor = layer.lin_l(x_PF) + layer.bias
        return own_PH
    weight_AC = layer.att[0]
    patches, (heads, _) = x_PF.shape[0], weight_AC.shape
    sent_MAC = layer.lin_l(x_PF).view(-1, *weight_AC.shape)[source_M]
    received_MAC = layer.lin_r(x_PF).view(-1, *weight_AC.shape)[target_M]
    score_MA = (F.leaky_relu(sent_MAC + received_MAC, SLOPE) * weight_AC).sum(dim=-1)
    index_MA = target_M[:, None].expand(-1, heads)
    lowest_PA = torch.full((patches, heads), -1e30, dtype=x_PF.dtype)
    highest_PA = lowest_PA.scatter_reduce(0, index_MA, score_MA, "amax")
    weight_MA = (score_MA - highest_PA[target_M]).exp()
    total_PA = torch.zeros(patches, heads, dtype=x_PF.dtype).index_add(0, target_M, weight_MA)
    message_MAC = (weight_MA / total_PA[target_M])[:, :, None] * sent_MAC
    out_PAC = torch.zeros(patches, *weight_AC.shape, dtype=x_PF.dtype).index_add(0, target_M, message_MAC)
    return out_PAC.flatten(1) + layer.bias


def example(card: BundleCard, patches: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Draws features (P, D) and the edges (2, E) of a ring-like graph, if the model's bags have one."""
    rng = np.random.default_rng(seed)
    k = 0 if card.graph == "none" else min(card.neighbors, patches - 1)
    start_E = np.repeat(np.arange(patches), k)
    end_E = (start_E + np.tile(np.arange(1, k + 1), patches)) % patches
    return rng.normal(size=(patches, card.width)).astype(np.float32), np.stack([start_E, end_E])


def expected(models: Sequence[MILModel], features_PD: Floats, edges_2E: NDArray[np.int64]) -> NDArray[np.float64]:
    """Predicts the mean probabilities (Y,) of a bag by the models themselves."""
    indptr, indices = csr_graph(edges_2E, len(features_PD))
    batch = collate([Bag("example", features_PD, None, indptr, indices, {})])
    p_NY = np.stack([model.predict(batch)[0][0].double().numpy() for model in models])
    mean_Y: NDArray[np.float64] = p_NY.mean(axis=0)
    return mean_Y


def export_program(models: Sequence[MILModel], card: BundleCard, form: str, out: str) -> float:
    """Writes an ensemble as `onnx` or `pt2`, after it has been checked against the models.

    Args:
        models: in evaluation mode.
        card: of the first; label, classes and mean threshold go into the file.
        form: `onnx` or `pt2`.
        out: the file.

    Returns:
        The largest difference of a probability from the models' own.

    Raises:
        InputError: a model cannot be exported, or a package is missing.
        RunError: the exported program computes something else.
    """
    program = Program(models, graph=card.graph != "none").eval()
    features_PD, edges_2E = (torch.from_numpy(x) for x in example(card, 19))
    inputs = (features_PD, edges_2E) if program.has_graph else (features_PD,)
    patches = torch.export.Dim("patches", min=2)
    shapes: dict[str, Any] = {"features": {0: patches}}
    if program.has_graph:
        shapes["edges"] = {1: torch.export.Dim("n_edges", min=2)}
    else:
        shapes["edges"] = None
    content, run = (_onnx if form == "onnx" else _pt2)(program, inputs, shapes, card)
    worst = 0.0
    for seed, size in enumerate(CHECKED_SIZES):
        features, edges = example(card, size, seed)
        ours = expected(models, features, edges)
        worst = max(worst, float(np.abs(run(features, edges) - ours).max()))
    if not worst <= TOLERANCE:
        raise RunError(
            f"the exported {form} differs from the bundle by {worst:.2g} in a probability: it is not written"
        )
    storage.write_bytes(out, content)
    return worst


def _description(card: BundleCard) -> dict[str, str]:
    keys = ("label", "classes", "threshold", "width", "neighbors", "encoder", "bag", "version")
    return {key: json.dumps(getattr(card, key)) for key in keys}


def _onnx(program: Program, inputs: tuple[Tensor, ...], shapes: dict[str, Any], card: BundleCard) -> tuple[bytes, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # which torch.onnx needs
    except ImportError as error:
        raise InputError(f"--format onnx needs the package {error.name}: pip install 'momkd-ray[onnx]'") from error
    exported = torch.onnx.export(
        program,
        inputs,
        dynamo=True,
        dynamic_shapes={name: shape for name, shape in shapes.items() if shape is not None},
        opset_version=OPSET,
        input_names=["features", "edges"][: len(inputs)],
        output_names=["probabilities", "attention"],
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
    onnx.helper.set_model_props(proto, _description(card))
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(features: Floats, edges: NDArray[np.int64]) -> Floats:
        given = {"features": features} | ({"edges": edges} if program.has_graph else {})
        result: Floats = session.run(["probabilities"], given)[0]
        return result

    return content, run


def _pt2(program: Program, inputs: tuple[Tensor, ...], shapes: dict[str, Any], card: BundleCard) -> tuple[bytes, Any]:
    dynamic = shapes if program.has_graph else {"features": shapes["features"]}
    exported = torch.export.export(program, inputs, dynamic_shapes=dynamic)
    stream = io.BytesIO()
    torch.export.save(exported, stream, extra_files={"card.json": json.dumps(_description(card))})
    loaded = torch.export.load(io.BytesIO(stream.getvalue())).module()

    def run(features: Floats, edges: NDArray[np.int64]) -> Floats:
        given = [torch.from_numpy(features), *([torch.from_numpy(edges)] if program.has_graph else [])]
        probabilities: Floats = loaded(*given)[0].numpy()
        return probabilities

    return stream.getvalue(), run
