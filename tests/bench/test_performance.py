"""The performance page: its arithmetic, and that its figures are those of the results."""

import pytest

from bench.scaling import straightness
from bench.speed import FLOOR_BATCH
from bench.write_performance import arithmetic_seconds, performance_page


def timing(median: float) -> dict[str, float]:
    return {
        "median": median,
        "lower_quartile": 0.9 * median,
        "upper_quartile": 1.1 * median,
        "repeats": 5,
        "images_per_second": 64 / median,
    }


def steps() -> dict[str, object]:
    names = {
        "generator step": 0.5,
        "student step": 0.25,
        "student update": 0.2,
        f"quantized training step, batch {FLOOR_BATCH}": 0.3,
        f"float training step, batch {FLOOR_BATCH}": 0.26,
        "generator step, not compiled": 0.75,
    }
    return {
        "steps": {name: timing(median) for name, median in names.items()},
        "training_step_over_floor": timing(1.15),
        "network_alone_over_floor": timing(1.4),
        "peak_tensors_gb": {"generator step": 0.375, "student step": 0.25},
        "operations": {"network": 4e6, "generator": 2e6},
        "batches": {"generator": 100, "student": 50},
        "operations_per_second": 1e10,
    }


def test_arithmetic_counts_the_passes_of_each_step() -> None:
    seconds = arithmetic_seconds(steps())
    assert seconds["generator step"] == pytest.approx(100 * (3 * 2e6 + 2 * 4e6) / 1e10)
    assert seconds["student update"] == pytest.approx(50 * 3 * 4e6 / 1e10)
    assert seconds["student step"] == pytest.approx(50 * (2e6 + 4 * 4e6) / 1e10)


def test_straightness_is_the_largest_share_off_the_line() -> None:
    exact = straightness([1.0, 2.0, 3.0, 4.0], [3.0, 5.0, 7.0, 9.0])
    assert (exact["slope"], exact["offset"]) == (pytest.approx(2.0), pytest.approx(1.0))
    assert exact["largest_miss"] == pytest.approx(0.0, abs=1e-9)
    assert straightness([1.0, 2.0, 3.0], [1.0, 2.0, 6.0])["largest_miss"] == pytest.approx(1 / 2)


def test_page_holds_the_figures() -> None:
    origin = {
        "command": "python -m bench.speed",
        "commit": "0123456789abcdef",
        "machine": {"cores": 2, "processor": "Abacus"},
        "versions": {"torch": "2.9"},
    }
    synthesis = {
        name: timing(1.0)
        for name in ("our_rate", "peers_rate", "our_seconds_to_that_loss", "peers_seconds", "share_of_the_peers_time")
    }
    of_speed = {
        **origin,
        "steps": {"net": steps()},
        "synthesis": {"net": {**synthesis, "rate_over_peers": timing(3.25), "peers_iterations": 200}},
        "runs": {"net w8a8 fast": {"seconds": 61.4, "peak_memory_gb": 1.25}},
    }
    of_scaling = {**origin, "scaling": {"rounds": {"line": {"largest_miss": 0.034}}}}
    page = performance_page(of_speed, of_scaling)
    assert "| `net` w8a8 fast | 61 s | 1.2 GB |" in page
    assert "| `net`, generator step | 0.500 s | 128 | 0.140 s | 28 % | 0.38 GB |" in page
    assert "An image of `net` costs its generator 2 million" in page
    assert "**quantized over float** | **1.15** |" in page
    assert "cross-entropy alone** | **1.40** |" in page
    assert "**3.2**" in page
    assert "| `net`, generator step, not compiled | 0.750 s | 1.50 |" in page
    assert "rounds: off a straight line by at most 3 %" in page
    assert "0123456789" in page
