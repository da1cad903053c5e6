"""Where a learner computes, and under which settings of torch the bits repeat.

One thread: sums are split among threads, so another number of them rounds differently; and one process is one agent, of which a
machine runs many. On CUDA torch's deterministic kernels, and cuBLAS's fixed workspace, which these ask for. So results repeat
bit for bit on one kind of device, and not from one kind to another: the agents of an exact run are restarted on what they ran on.
"""

from __future__ import annotations

import os
from typing import Literal

import torch

from fmrec_agent.learning.learner import LearnerError


def prepared_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device, with torch made deterministic on it, in this thread. LearnerError where cuda is asked for and there is none."""
    torch.set_num_threads(1)
    if wanted == "cpu" or not torch.cuda.is_available():
        if wanted == "cuda":
            raise LearnerError('learning.device is "cuda", but torch finds no CUDA device here: set it to "auto" or "cpu"')
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    return torch.device("cuda")
