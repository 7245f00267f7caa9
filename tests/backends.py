"""Where the kernels' tests run: plain torch on the CPU and, where there is one, both on a GPU.
Under TRITON_INTERPRET=1 Triton's interpreter alone.
"""

import os
import subprocess
import sys

import pytest
import torch

from nanomerci.kernels import triton

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BACKENDS = (
    [("triton", "cpu")]
    if INTERPRET
    else [
        ("torch", "cpu"),
        *(pytest.param((backend, "cuda"), marks=ON_GPU) for backend in ("torch", "triton")),
    ]
)
OLD_INTERPRETER = triton and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


def run_in_the_interpreter(file):
    """The whole file again, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
