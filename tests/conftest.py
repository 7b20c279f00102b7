"""One thread: the networks of the tests are small. Formulas as plain operators and compiled."""

from collections.abc import Iterator

import pytest
import torch

from causal_dfq import fusion as fusion_module
from causal_dfq.fusion import fusion

torch.set_num_threads(1)


@pytest.fixture(params=["operators", "fused"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test twice: formulas as chains of operators, and compiled, however small their tensors."""
    if request.param == "operators":
        yield
        return
    monkeypatch.setattr(fusion_module, "SMALLEST_COMPILED", 0)
    with fusion(torch.device("cpu")) as is_fused:
        if not is_fused:
            pytest.skip("torch.compile finds no compiler here")
        yield
