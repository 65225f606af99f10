"""Times a step of the default network on small bags, and what it costs above its matrix products, on one thread.

    python benchmarks/small_steps.py [--patches 4 50 250] [--bags 32] [--width 1536] [--genes 768] [--rounds 15]

"products" are the matrix products of encoder, omics branch and classifier, forward and back, alone; "above" is what a
step takes beyond them: losses, dropout, optimiser, memory and Python. "collate" makes the batch of a step from bags in
memory, as a prefetch thread does; "validate" predicts one bag, collated alone, as validation does.

To compare with another version, run it twice: `PYTHONPATH=/the/other/checkout python benchmarks/small_steps.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from table import interleaved, machine, print_table

from momkd_ray.batches.collate import BagBatch, collate
from momkd_ray.config.sections import LossConfig, MemoryConfig, ModelConfig, TrainConfig
from momkd_ray.formats.bag import Bag
from momkd_ray.formats.knn_graph import knn_graph
from momkd_ray.model.component_momkd import ComponentMoMKD
from momkd_ray.train.collectives import SingleProcess
from momkd_ray.train.step import Stepper

NEIGHBORS = 8
REPEATS = 10


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--patches", type=int, nargs="+", default=[4, 50, 250])
    arguments.add_argument("--bags", type=int, default=TrainConfig().bags_per_step)
    arguments.add_argument("--width", type=int, default=1536)
    arguments.add_argument("--genes", type=int, default=768)
    arguments.add_argument("--rounds", type=int, default=15)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    print(machine())
    rows = [row_of(patches, options) for patches in options.patches]
    title = f"A step of {options.bags} bags of {options.width} features with {options.genes} genes, ms of one CPU"
    print_table(title, [*rows[0]], [row.values() for row in rows])


def row_of(patches: int, options: argparse.Namespace) -> dict[str, str]:
    bags = [made_bag(patches, options.width, seed) for seed in range(options.bags)]
    omics = [np.random.default_rng(b).standard_normal(options.genes).astype(np.float32) for b in range(len(bags))]

    def collated() -> BagBatch:
        return collate(
            bags,
            [b % 2 for b in range(len(bags))],
            omics,
            list(range(len(bags))),
            targets=[0.5 + 0.4 * (-1) ** b for b in range(len(bags))],
        )

    torch.manual_seed(0)
    model = ComponentMoMKD(ModelConfig(), MemoryConfig(), LossConfig(), width=options.width, genes=options.genes)
    stepper = Stepper(model, TrainConfig(), SingleProcess(), torch.device("cpu"))
    other = ComponentMoMKD(ModelConfig(), MemoryConfig(), LossConfig(), width=options.width, genes=options.genes).eval()
    batch = collated()
    ways: dict[str, Callable[[], object]] = {
        "step": lambda: stepper.step([batch], len(bags)),
        "products": products(model, batch),
        "collate": collated,
        "validate": lambda: other.predict(collate([bags[0]])),
    }
    for way in ways.values():
        way()
    repeated = {name: lambda way=way: [way() for _ in range(REPEATS)] for name, way in ways.items()}
    ms = {name: s / REPEATS * 1e3 for name, s in interleaved(repeated, options.rounds, clock=time.process_time).items()}
    shown = {"patches": f"{patches:,}"} | {name: f"{ms[name]:.2f}" for name in ("step", "products")}
    shown |= {"above": f"{ms['step'] - ms['products']:.2f}"}
    return shown | {name: f"{ms[name]:.2f}" for name in ("collate", "validate")}


def products(model: ComponentMoMKD, batch: BagBatch) -> Callable[[], object]:
    """The matrix products of a step: pooling, every linear layer, and two products of its size back."""
    patches, bags = len(batch.features_PD), len(batch)
    components = model.memory_config.components
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    by_component = {id(model.encode), id(model.project_slide)}
    inputs = [torch.randn(bags * components if id(m) in by_component else bags, m.in_features) for m in layers]
    weight_KP, x_PD = torch.randn(components, patches // bags), batch.features_PD.view(bags, patches // bags, -1)

    @torch.no_grad()
    def all_of_them() -> None:
        x_PD @ model.direction_DJ
        weight_KP @ x_PD
        for layer, x in zip(layers, inputs, strict=True):
            y = layer(x)
            y.T @ x
            y @ layer.weight

    return all_of_them


def made_bag(patches: int, width: int, seed: int) -> Bag:
    rng = np.random.default_rng(seed)
    side = int(np.ceil(patches**0.5))
    coords_P2 = np.stack(np.divmod(np.arange(patches), side), 1).astype(np.int32) * 256
    features_PD = rng.standard_normal((patches, width), dtype=np.float32).astype(np.float16)
    return Bag(f"{patches}-{seed}", features_PD, coords_P2, *knn_graph(coords_P2, NEIGHBORS), {})


if __name__ == "__main__":
    main()
