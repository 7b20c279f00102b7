"""Elementwise formulas over large tensors, in one pass over memory where torch.compile can make it.

Fake quantization reads and writes much and computes little: as a chain of operators it moves ten times the
bytes that it needs. Each `Formula` is plain torch; within `fusion()` it runs compiled. [ours]
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# A compilation is laid out for the first tensor that it meets, and serves all: a small one would leave the
# large ones to a single thread, and make the result depend on what was computed before.
SMALLEST_COMPILED = 2**16

# Of one formula, for types and devices: a process may quantize many networks, and torch gives up at 8.
_MOST_COMPILATIONS = 64

_is_on = False


def is_fusing() -> bool:
    """Whether formulas run compiled now."""
    return _is_on


class Formula:
    """A function of tensors of equal layout, compiled at its first call within `fusion()`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if not _is_on or arguments[0].numel() < SMALLEST_COMPILED:
            return self._function(*arguments)
        if self._compiled is None:
            # Sizes are symbols: one compilation serves every layer of a type.
            self._compiled = torch.compile(self._function, dynamic=True, fullgraph=True)
        # A compilation holds for one mode of gradients and of autocast, so it always sees the same.
        plain = [
            argument.detach() if isinstance(argument, Tensor) and argument.requires_grad else argument
            for argument in arguments
        ]
        with _interrupts_held():
            if not torch.is_grad_enabled() and not torch.is_autocast_enabled(plain[0].device.type):
                return self._compiled(*plain)
            with torch.no_grad(), torch.autocast(plain[0].device.type, enabled=False):
                return self._compiled(*plain)


@contextlib.contextmanager
def fusion(device: torch.device) -> Iterator[bool]:
    """Runs every `Formula` compiled; yields whether it does: without a compiler they stay plain torch."""
    global _is_on
    before, _is_on = _is_on, can_compile(device)
    try:
        with torch._dynamo.config.patch(recompile_limit=_MOST_COMPILATIONS) if _is_on else contextlib.nullcontext():
            yield _is_on
    finally:
        _is_on = before


@functools.cache
def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here: it wants a C++ compiler for a CPU, Triton for a GPU."""
    # On a machine without a GPU it warns that there is no CUDA.
    log = logging.getLogger("torch.utils.cpp_extension")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with _interrupts_held():
            probe = torch.compile(lambda values: values.float() + 1, dynamic=True, fullgraph=True)
            return bool(torch.equal(probe(torch.zeros(2, 3, device=device)), torch.ones(2, 3, device=device)))
    except Exception:  # Whatever a tool chain lacks, plain torch does the same work.
        return False
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back: it would kill the compiler, which runs as a child of this process."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def constant(value: float, device: torch.device) -> Tensor:
    """A number as a formula takes it: a plain one would be compiled in, once for each that occurs."""
    return torch.tensor(value, device=device)


def is_channels_last(values: Tensor) -> bool:
    """Whether the memory of (N, C, H, W) is laid out as (N, H, W, C)."""
    return values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)


def in_memory_order(values: Tensor) -> Tensor:
    """(N, C, H, W) in channels_last -> (N, H, W, C), a view; anything else as it is, made contiguous."""
    return values.permute(0, 2, 3, 1) if is_channels_last(values) else values.contiguous()


def by_place(values: Tensor) -> Tensor:
    """(N, C, H, W) in channels_last -> (N, H W, C), a view."""
    return in_memory_order(values).flatten(1, 2)


class _GradientInFormat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].contiguous(memory_format=torch.channels_last)


def with_gradient_in_channels_last(values: Tensor) -> Tensor:
    """Values (N, C, H, W) whose gradient will lie in channels_last; a mean or a crop gives it in another format."""
    result: Tensor = _GradientInFormat.apply(values)
    return result


def like_in_memory(values: Tensor, model: Tensor) -> Tensor:
    """`values` in the memory format that `in_memory_order` sees in `model`."""
    return values.contiguous(memory_format=torch.channels_last if is_channels_last(model) else torch.contiguous_format)


def from_memory_order(values: Tensor, model: Tensor) -> Tensor:
    """The inverse of `in_memory_order` for a result of any shape with the values of `model`'s layout."""
    if is_channels_last(model):
        count, channels, height, width = model.shape
        return values.view(count, height, width, channels).permute(0, 3, 1, 2)
    return values.view(model.shape)
