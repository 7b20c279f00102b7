"""Writing tensors: what a file can hold, and no copy more than it needs."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from causal_dfq.errors import OutputError
from causal_dfq.files import check_target, detached_state, exists_as_file, write_tensors, write_text


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


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_what_is_no_file_is_neither_replaced_nor_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="no file that can be replaced"):
        check_target(tmp_path / "pipe", force=True)
    for path in (tmp_path / "pipe", tmp_path, Path("/")):
        with pytest.raises(OutputError, match="it is no file"):
            write_text(path, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_name_that_no_file_can_have_is_no_file(tmp_path: Path) -> None:
    assert not exists_as_file(tmp_path / ("n" * 300))
    assert exists_as_file(Path(__file__))
