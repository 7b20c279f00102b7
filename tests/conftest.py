"""One thread: the networks of the tests are small."""

import torch

torch.set_num_threads(1)
