"""Bit widths and options: what is understood, and what is said otherwise."""

import pytest

from causal_dfq.config import BitWidths, make_options
from causal_dfq.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "widths"), [("w4a4", (4, 4)), ("W2A8", (2, 8)), (" w32a4 ", (32, 4)), ("w3a32", (3, 32))]
)
def test_bits_are_read(text: str, widths: tuple[int, int]) -> None:
    assert BitWidths.parse(text) == BitWidths(*widths)
    assert BitWidths.parse(str(BitWidths(*widths))) == BitWidths(*widths)


@pytest.mark.parametrize("text", ["", "4", "w4", "a4w4", "w4a4b4", "w1a4", "w4a9", "w16a16", "w-4a4"])
def test_other_bits_are_refused_with_what_was_given(text: str) -> None:
    with pytest.raises(ConfigError, match=repr(text)):
        BitWidths.parse(text)


def test_pixel_bounds_are_black_and_white_normalized() -> None:
    options = make_options(input_shape=(2, 4, 4), mean=(0.5, 0.25), std=(0.5, 0.25))
    assert options.pixel_bounds == ((-1.0, -1.0), (1.0, 3.0))
    assert make_options(input_shape=(2, 4, 4)).pixel_bounds is None


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"input_shape": (3, 0, 4)}, "3x0x4 has a side below 1"),
        ({"std": (0.5, 0.0, 0.5), "mean": (0.0,) * 3}, "must be positive"),
        ({"effort": "heroic"}, "effort='heroic'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_options_that_cannot_be_used_are_named(choices: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_options(**{"input_shape": (3, 4, 4), **choices})
