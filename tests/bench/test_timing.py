"""The stop-watch of the benches."""

import pytest

from bench.timing import Timing, interleave, paired_ratio


def test_every_piece_of_work_has_its_turn_and_the_order_rotates() -> None:
    order: list[str] = []
    seconds = interleave({name: lambda name=name: order.append(name) for name in "abc"}, repeats=3, warm_up=1)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_timing_is_median_and_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Timing(3.0, 2.0, 4.0, 5)


def test_ratio_is_taken_turn_by_turn() -> None:
    ratio = paired_ratio([2.0, 20.0, 200.0], [1.0, 10.0, 50.0])
    assert ratio.median == pytest.approx(2.0)
    assert ratio.upper_quartile == pytest.approx(3.0)
