"""What BatchNorm's statistics are worth: a network as it was trained, and with its BatchNorm folded away.

    python -m bench.without_norm [--efforts fast] [--seeds 0]

Both compute the same in float. Without BatchNorm images are scenes imprinted by the logits alone. Writes
bench/results/without_norm.json, and the table of docs/method.md.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.accuracy import MOBILENET, RESNET20, combined
from bench.changed_run import Case, quantize_changed
from bench.environment import ROOT, describe
from bench.networks import Subject, evaluate_on_sets, load_subject
from bench.write_tables import by_case, origin_text, replace_between, seeds_text
from causal_dfq.files import write_text
from causal_dfq.network.capture import capture
from causal_dfq.network.fold import fold_batch_norm

RESULTS = ROOT / "bench" / "results" / "without_norm.json"
PAGE = ROOT / "docs" / "method.md"
CASES = ((RESNET20, "w8a8"), (RESNET20, "w4a8"), (RESNET20, "w4a4"), (MOBILENET, "w8a8"))


def without_norm(subject: Subject) -> Subject:
    """The subject with its BatchNorm folded into the layers before."""
    return replace(subject, network=fold_batch_norm(capture(subject.network, subject.input_shape)))


def table(results: dict[str, Any]) -> str:
    """Drop with and without BatchNorm, a line a network, width and effort."""
    lines = [
        "What that costs, on networks whose BatchNorm was folded away:",
        "",
        "| network | bits | effort | drop with | drop without | seeds |",
        "|---|---|---|---:|---:|---|",
    ]
    for (network, bits, effort), runs in by_case(results).items():
        kept, folded = (sum(run[name] for run in runs) / len(runs) for name in ("drop_with", "drop_without"))
        lines.append(f"| `{network}` | {bits} deploy | {effort} | {kept:.2f} | {folded:.2f} | {seeds_text(runs)} |")
    lines += [
        "",
        f"Points of top-1 on development images; {origin_text(results)}",
    ]
    return "\n".join(lines)


def main(
    shared: Annotated[Path, typer.Option(help="Folder with data/ and checkpoints/.")] = ROOT.parent / "shared",
    efforts: Annotated[str, typer.Option(help="Comma-separated.")] = "fast",
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0",
) -> None:
    """Measures both networks, case by case in turn."""
    runs: list[dict[str, Any]] = []
    for seed in seeds.split(","):
        for effort in efforts.split(","):
            for network, bits in CASES:
                subject = load_subject(network, shared)
                case = Case(bits, "deploy", effort, int(seed))  # type: ignore[arg-type]
                drops = {
                    name: combined(list(evaluate_on_sets(quantize_changed(of, case), of, shared).values()))["drop"]
                    for name, of in (("drop_with", subject), ("drop_without", without_norm(subject)))
                }
                runs.append({"network": network, "bits": bits, "effort": effort, "seed": int(seed), **drops})
                print(runs[-1], flush=True)
                results = {**describe(), "runs": runs}
                write_text(RESULTS, json.dumps(results, indent=1) + "\n")
                write_text(PAGE, replace_between(PAGE.read_text(), "without-norm", table(results)))


if __name__ == "__main__":
    typer.run(main)
