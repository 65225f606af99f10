"""Products of ever new shapes, as bags of all sizes bring them, do not fill the memory."""

from __future__ import annotations

import os
import subprocess
import sys

from momkd_ray.ray_runtime.environment import COMPUTE

PRODUCTS = """
import momkd_ray.train
import torch
from momkd_ray.model.kernels.linear import Linear, multiplies_bf16

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

torch.set_num_threads(1)
half = multiplies_bf16(torch.device("cpu"))
layer, before = Linear(192, 128), None
for patches in range(2000, 2420):
    x_PF = torch.ones(patches, 192, dtype=torch.bfloat16 if half else torch.float32)
    layer(x_PF).sum().backward()
    if patches == 2020:
        before = resident_mib()
print(resident_mib() - before)
"""


def test_a_process_does_not_grow_with_the_sizes_of_its_bags() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in COMPUTE}
    run = subprocess.run([sys.executable, "-c", PRODUCTS], env=environment, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 100  # without a bound 400 sizes take 300 MiB and more
