"""A .pt2 file gives the simulation's numbers in a process that never sees this package."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from causal_dfq.errors import OutputError
from causal_dfq.export.torch_file import export_torch
from tests.export.conftest import finished_network
from tests.networks import SqueezeExcite

READ = """
import sys, torch
network = torch.export.load(sys.argv[1]).module()
torch.manual_seed(0)
for count in (1, 5):
    print(network(torch.randn(count, 3, 8, 8)).flatten().tolist())
assert "causal_dfq" not in sys.modules
"""


def test_torch_alone_loads_it_and_gets_the_same_numbers(tmp_path: Path) -> None:
    quantized = finished_network(SqueezeExcite(), "w4a4")
    path = export_torch(quantized, tmp_path / "network.pt2")
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True, cwd=tmp_path)
    torch.manual_seed(0)
    for count, line in zip((1, 5), done.stdout.splitlines(), strict=True):
        with torch.no_grad():
            expected = quantized(torch.randn(count, 3, 8, 8)).flatten()
        found = torch.tensor([float(value) for value in line.strip("[]").split(",")])
        torch.testing.assert_close(found, expected)


def test_a_file_that_exists_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_torch(finished_network(SqueezeExcite()), path)
    assert path.read_text() == "mine"
