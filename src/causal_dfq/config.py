"""Everything a user can choose, typed, validated and serializable."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from causal_dfq.errors import ConfigError

FLOAT_BITS = 32
# Of the weights, where each layer is given bits of its own; activations have 8.
AUTO_BITS = "auto"
Protocol = Literal["deploy", "gdfq", "genie"]
Effort = Literal["fast", "balanced", "best"]
Method = Literal["causal", "zeroq", "gdfq", "genie", "synq"]


@dataclass(frozen=True)
class BitWidths:
    """Bits of weights and activations: 2 to 8, or 32 for tensors that stay in floating point."""

    weight: int
    activation: int

    @classmethod
    def parse(cls, text: str) -> BitWidths:
        """Reads "w4a4", "w2a8", "w4a32".

        "auto" is w8a8: what a run sets out from before it chooses.

        Raises:
            ConfigError: the text has another form, or a width is neither 2 to 8 nor 32.
        """
        if text.strip().lower() == AUTO_BITS:
            return cls(8, 8)
        match = re.fullmatch(r"w(\d+)a(\d+)", text.strip().lower())
        if match is None:
            raise ConfigError(
                f"bits {text!r} are not understood: write them like w4a4, weights first, then activations, or auto"
            )
        widths = cls(int(match[1]), int(match[2]))
        for name, width in (("weight", widths.weight), ("activation", widths.activation)):
            if width != FLOAT_BITS and not 2 <= width <= 8:
                raise ConfigError(
                    f"bits {text!r}: {name} width {width} is not possible; use 2 to 8, or 32 to leave them in float"
                )
        return widths

    def __str__(self) -> str:
        return f"w{self.weight}a{self.activation}"


def parse_bytes(text: str) -> int:
    """Bytes of "2GB", "1.5G", "800MB"; a thousand is 1024, as memory is counted.

    Raises:
        ConfigError: another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?", text.strip().upper())
    if match is None:
        raise ConfigError(f"memory {text!r} is not understood: write it like 2GB or 800MB")
    unit = 1 << (10 * " KMGT".index(match[2] or " "))
    return round(float(match[1]) * unit)


class SizeBudget(BaseModel):
    """What all weights together may take: `bytes`, or a `share` of what they take at 8 bits; one of the two is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int | None = Field(default=None, ge=1)
    share: float | None = Field(default=None, gt=0, le=1)

    @classmethod
    def parse(cls, text: str) -> SizeBudget:
        """Reads "0.6", a share, or "600KB".

        Raises:
            ConfigError: another form, or a share that is not above 0 and at most 1.
        """
        try:
            share = float(text)
        except ValueError:
            count = _bytes_or_none(text)
            if not count:
                raise ConfigError(
                    f"size budget {text!r} is not understood: write a share of the size at 8 bits, like 0.6, or bytes, "
                    "like 600KB"
                ) from None
            return cls(bytes=count)
        if not 0 < share <= 1:
            raise ConfigError(
                f"size budget {text}: a number alone is a share of the size at 8 bits, above 0 and at most 1; "
                "write bytes with their unit, like 600KB"
            )
        return cls(share=share)

    @model_validator(mode="after")
    def _one_is_set(self) -> SizeBudget:
        if (self.bytes is None) == (self.share is None):
            raise ValueError("a size budget is either bytes or a share")
        return self

    def in_bytes(self, weights: int) -> int:
        """The budget of a network with so many weights."""
        if self.share is not None:
            return int(self.share * weights)
        assert self.bytes is not None
        return self.bytes


def _bytes_or_none(text: str) -> int | None:
    try:
        return parse_bytes(text)
    except ConfigError:
        return None


class Options(BaseModel):
    """The choices that define a run; with the network they determine every number of its result.

    `bits` "auto" chooses the bits of each layer's weights within `size_budget`. `input_shape` is (C, H, W); `mean`
    and `std` are the normalization of pixels in [0, 1], one value a channel: they tell which inputs a picture can
    have. `memory_limit`: bytes that the process should keep to; batches shrink to fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: str = "w4a4"
    protocol: Protocol = "deploy"
    effort: Effort = "balanced"
    method: Method = "causal"
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    memory_limit: int | None = Field(default=None, ge=1)
    size_budget: SizeBudget | None = None

    @field_validator("bits")
    @classmethod
    def _bits_can_be_parsed(cls, bits: str) -> str:
        try:
            widths = BitWidths.parse(bits)
            return AUTO_BITS if bits.strip().lower() == AUTO_BITS else str(widths)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @field_validator("input_shape")
    @classmethod
    def _shape_is_positive(cls, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        if min(shape) < 1:
            raise ValueError(f"input shape {'x'.join(map(str, shape))} has a side below 1")
        return shape

    @model_validator(mode="after")
    def _normalization_fits(self) -> Options:
        channels = self.input_shape[0]
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both or neither")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                raise ValueError(f"{name} has {len(values)} values, but the input has {channels} channels")
            if values is not None and not all(map(math.isfinite, values)):
                raise ValueError(f"{name} {values} must be finite")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        return self

    @model_validator(mode="after")
    def _budget_fits(self) -> Options:
        if (self.bits == AUTO_BITS) != (self.size_budget is not None):
            raise ValueError("bits auto and a size budget belong together, like --bits auto --size-budget 0.6")
        if self.bits == AUTO_BITS and (self.protocol, self.method) != ("deploy", "causal"):
            raise ValueError("bits auto go with the protocol deploy and the method causal alone")
        return self

    @property
    def widths(self) -> BitWidths:
        """The parsed bit widths; those that bits auto set out from."""
        return BitWidths.parse(self.bits)

    @property
    def pixel_bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Normalized values of a black and of a white pixel, by channel; None where unknown."""
        if self.mean is None or self.std is None:
            return None
        low = tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
        high = tuple((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        return low, high


def make_options(**choices: Any) -> Options:
    """`Options` from loose values.

    Raises:
        ConfigError: a value cannot be used; the message names it.
    """
    try:
        return Options(**choices)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"]))
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if problem["type"] == "value_error" else f" {name}={problem['input']!r}:"
            problems.append(f"{given} {message}".strip())
        raise ConfigError("; ".join(problems)) from error
