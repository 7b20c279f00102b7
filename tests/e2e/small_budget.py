"""The command line with a budget of a few steps: run as a process of its own by the tests."""

import os

import torch

from causal_dfq.cli import run
from causal_dfq.training import checkpoint
from causal_dfq.training.budget import BUDGETS, Budget

torch.set_num_threads(1)
BUDGETS["fast"] = Budget(warmup_steps=3, equilibrium_rounds=2, finish_rounds=3, student_steps=1)
checkpoint.SECONDS_BETWEEN = float(os.environ.get("SECONDS_BETWEEN", "15"))

if __name__ == "__main__":
    run()
