"""The tables of the integer file: ratios, limits, and one table of speed for each kind of processor."""

from typing import Any

from bench.integer import _of_each_processor, page_section


def origin(processor: str, commit: str = "a" * 40) -> dict[str, Any]:
    return {"commit": commit, "versions": {"torch": "2.14"}, "machine": {"processor": processor, "cores": 2}}


def speed(processor: str, commit: str = "a" * 40) -> dict[str, Any]:
    medians = {"float32": 0.012, "w8a8": 0.004, "w4a8": 0.004, "w4a4": 0.0048}
    seconds = {f"ONNX Runtime 1: {label}": {"median": median} for label, median in medians.items()}
    measured = {"seconds": seconds, "fused": {bits: [20, 21] for bits in ("w8a8", "w4a8", "w4a4")}}
    return {"origin": origin(processor, commit), "measured": {"resnet18": measured, "mobilenet_v2": measured}}


def test_an_entry_takes_the_place_of_the_one_of_its_processor() -> None:
    first, second, again = speed("one"), speed("two"), speed("one", "b" * 40)
    assert _of_each_processor([first, second], again) == [second, again]
    assert _of_each_processor([], first) == [first]


def test_the_page_holds_ratios_limits_and_origins() -> None:
    parity = {
        "network": "net",
        "bits": "w8a8",
        "synthetic_agreement": 99.94,
        "agreement": 99.913,
        "simulated_top1": 61.3,
        "file_top1": 61.21,
    }
    results = {
        "parity": {"origin": origin("one"), "measured": [parity]},
        "sizes": {
            "origin": origin("one"),
            "measured": {"float32": 40_000_000, "w8a8": 10_000_000, "w4a8": 5_000_000, "w2a4": 2_500_000},
        },
        "speed": [speed("one"), speed("two", "b" * 40)],
    }
    page = page_section(results)
    assert "| `net` | w8a8 | 99.9 % | 99.91 % | 61.30 | 61.21 |" in page
    assert "| w8a8 | 10.00 | 0.250 | 0.27 |" in page
    assert page.count("| ONNX Runtime 1: w8a8 | 4.00 | 3.00 |") == 4
    assert page.count("| ONNX Runtime 1: w4a4 | 4.80 | 2.50 |") == 4
    assert "| resnet18, one image, 2 threads, two | ms |" in page
    assert "w8a8 20 of 21" in page
    assert "speed aaaaaaaaaa (one), speed bbbbbbbbbb (two)" in page
