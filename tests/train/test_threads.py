"""What a fold leaves in its process: no thread of its own, and no memory that is not used."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.fold_tasks import fold_task

from momkd_ray.train import prometheus
from momkd_ray.train.worker import train_loop_per_worker

FREED = """
from momkd_ray.train.threads import return_unused_memory

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

blocks = [bytearray(b"x" * 100_000) for _ in range(4000)]
kept = blocks[::40]  # so that the heap cannot simply shrink
del blocks
before = resident_mib()
return_unused_memory()
print(before - resident_mib())
"""

PRODUCTS = """
import threading
import torch
from momkd_ray.train.threads import return_unused_memory

torch.set_num_threads(1)
x_PF, w_FH = torch.ones(4000, 768), torch.ones(768, 512)
expected = x_PF @ w_FH
for _ in range(3):
    thread = threading.Thread(target=lambda: x_PF @ w_FH)
    thread.start()
    thread.join()
    return_unused_memory()
    assert torch.equal(x_PF @ w_FH, expected)
print("equal")
"""

REUSED = """
import resource
import torch
from momkd_ray.train.threads import reuse_freed_memory

reuse_freed_memory()
for _ in range(21):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    gradients = [torch.ones(2**19) for _ in range(8)]  # 2 MiB each
    del gradients
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries give memory back in their own time")
def test_memory_that_is_no_longer_used_goes_back_to_the_machine() -> None:
    assert float(printed(FREED)) > 200  # of nearly 400 MB


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries have no such limits")
def test_memory_of_one_step_serves_the_next() -> None:
    first, *later = map(int, printed(REUSED).split())
    assert sum(later) < first  # pages


def test_products_are_as_before_once_their_buffers_were_freed() -> None:
    assert printed(PRODUCTS).strip() == "equal"


@pytest.mark.parametrize("ends_early", [False, True])
def test_a_fold_leaves_no_thread_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_early: bool) -> None:
    monkeypatch.setattr(prometheus, "_ray_is_initialised", lambda: True)
    monkeypatch.setattr(prometheus.GaugeReporter, "_report", lambda self: None)
    before = set(threading.enumerate())
    train_loop_per_worker(
        {"task": fold_task(tmp_path), "stop": lambda: ends_early and bool(list(tmp_path.rglob("*.pt")))}
    )
    left = [
        thread for thread in threading.enumerate() if thread not in before and not thread.name.startswith("kernels")
    ]
    for thread in left:
        thread.join(timeout=10)  # it has been told to end
    assert [thread.name for thread in left if thread.is_alive()] == []
