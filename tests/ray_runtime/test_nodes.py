"""Data that a machine of the cluster does not see are refused before anything starts, by the machine's name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from momkd_ray.errors import InputError
from momkd_ray.ray_runtime import nodes
from momkd_ray.ray_runtime.nodes import Node, refuse_unshared

FOUND = [Node("a", "head (10.0.0.1)", 1, 0.0, False), Node("b", "gpu-7 (10.0.0.7)", 1, 8.0, True)]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(nodes, "is_connected", lambda: True)
    monkeypatch.setattr(nodes, "nodes_of", lambda cluster: FOUND)
    monkeypatch.setattr(nodes.time, "sleep", lambda seconds: None)
    return {str(tmp_path / "bags"): "store.uri", str(tmp_path / "run"): "run.dir", "s3://bucket/x": "store.uri"}


def answers(monkeypatch: pytest.MonkeyPatch, blind: str) -> None:
    """One machine does not see paths with `blind` in them."""

    def ask(asked: Sequence[Node], question: Any, sizes: dict[str, int]) -> dict[str, list[str]]:
        seen = question(sizes)
        return {"a": seen, "b": seen + [path for path in sizes if blind and blind in path]}

    monkeypatch.setattr(nodes, "ask_nodes", ask)


def test_what_all_machines_see_is_accepted_and_left_as_it_was(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, "")
    (tmp_path / "slide.h5").write_bytes(b"123")
    refuse_unshared(folders, {str(tmp_path / "slide.h5"): "features.dir", str(tmp_path / "none.h5"): "features.dir"})
    assert os.listdir(tmp_path / "bags") == os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize(("blind", "key"), [("/run/", "run.dir"), ("/bags/", "store.uri"), ("slide", "features.dir")])
def test_the_machine_that_does_not_see_is_named(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blind: str, key: str
) -> None:
    answers(monkeypatch, blind)
    (tmp_path / "slide.h5").write_bytes(b"123")
    with pytest.raises(InputError, match=rf"the machine gpu-7 \(10\.0\.0\.7\) .*{blind.strip('/')}.*\({key}\)"):
        refuse_unshared(folders, {str(tmp_path / "slide.h5"): "features.dir"})
    assert os.listdir(tmp_path / "run") == []


def test_a_cluster_of_one_machine_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "is_connected", lambda: True)
    monkeypatch.setattr(nodes, "nodes_of", lambda cluster: FOUND[:1])
    refuse_unshared({str(tmp_path / "bags"): "store.uri"}, {})
    assert not (tmp_path / "bags").exists()
