"""Writing tensors: what a file can hold, and no copy more than it needs."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from causal_dfq.files import detached_state, write_tensors


def test_tied_and_strided_tensors_are_written_and_read_back(tmp_path: Path) -> None:
    tied = torch.nn.Parameter(torch.arange(6.0))
    strided = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    state = {"one": tied, "other": tied, "part": tied[2:4], "strided": strided}
    write_tensors(tmp_path / "state.safetensors", detached_state(state))
    found = load_file(tmp_path / "state.safetensors")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_what_lies_as_a_file_wants_it_is_not_copied() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4))
    detached = detached_state({"weight": weight})["weight"]
    assert detached.data_ptr() == weight.data_ptr()
    assert not detached.requires_grad
