"""Training cuts large bags into tiles only for models that read the graph, and no number depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.fold_tasks import fold_task, state_of

from momkd_ray.batches import collate, tiles
from momkd_ray.train import worker


def trained(location: Path, pooling: str) -> dict[str, Any]:
    task = fold_task(location, pooling=pooling, dropout=0.3, epochs=2)
    worker.train_loop_per_worker({"task": task})
    weights: dict[str, Any] = state_of(location)["model"]
    return weights


@pytest.mark.parametrize("pooling", ["attention", "components"])
def test_tiles_are_cut_for_models_that_read_the_graph_alone(
    pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setitem(tiles.MAX_UNTILED_PATCHES, "cpu", 10)
    monkeypatch.setitem(tiles.TILE_PATCHES, "cpu", 8)
    cut = []

    def counted(*args: Any) -> Any:
        cut.append(args)
        return tiles.cut_tiles(*args)

    monkeypatch.setattr(collate, "cut_tiles", counted)
    weights = trained(tmp_path / "by model", pooling)
    assert bool(cut) == (pooling == "attention")
    cut.clear()
    monkeypatch.setattr(worker, "reads_graph", lambda model: True)
    tiled = trained(tmp_path / "always", pooling)
    assert cut
    for name, value in weights.items():
        assert torch.equal(value, tiled[name]), name
