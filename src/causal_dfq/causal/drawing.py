"""The causal graph as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from causal_dfq.causal.graph import StructuralCausalModel


def draw_graph(model: StructuralCausalModel, path: Path) -> None:
    """Layers from left to right by causal depth; arrows are edges, boxes are intervened variables."""
    depth: dict[str, int] = {}
    for name, variable in model.variables.items():
        depth[name] = 1 + max((depth[parent] for parent in variable.parents), default=-1)
    depth = {name: _column(model, name, depth) for name in depth}
    columns = [[name for name in depth if depth[name] == column] for column in range(max(depth.values()) + 1)]
    position = {
        name: (2.2 * column, 1.2 * (len(names) - 1) / 2 - 1.2 * row)
        for column, names in enumerate(columns)
        for row, name in enumerate(names)
    }
    figure = Figure(figsize=(2.2 * len(columns) + 0.6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name, variable in model.variables.items():
        for parent in variable.parents:
            arrow = {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 20, "shrinkB": 20, "linewidth": 1.5}
            axes.annotate("", position[name], position[parent], arrowprops=arrow)
        is_intervened = variable.equation.startswith("do(")
        shape = "square" if is_intervened else "circle"
        color = "#ffd9a8" if is_intervened else "#d5e5f6"
        box = {"boxstyle": f"{shape},pad=0.45", "facecolor": color, "edgecolor": "0.3"}
        symbol = variable.symbol.replace("_P", "$_P$").replace("_Q", "$_Q$")
        axes.text(*position[name], symbol, ha="center", va="center", fontsize=13, bbox=box)
        left, bottom = position[name]
        axes.text(left, bottom - 0.52, variable.equation, ha="center", va="top", fontsize=7, color="0.35")
    horizontal, vertical = zip(*position.values(), strict=True)
    axes.set_xlim(min(horizontal) - 1.2, max(horizontal) + 1.2)
    axes.set_ylim(min(vertical) - 1.0, max(vertical) + 0.6)
    axes.axis("off")
    figure.savefig(path, dpi=150)


def _column(model: StructuralCausalModel, name: str, depth: dict[str, int]) -> int:
    """An intervened variable stays left of its effects, wherever it stood before."""
    effects = [depth[other] for other, variable in model.variables.items() if name in variable.parents]
    return min(effects) - 1 if effects and not model.variables[name].parents else depth[name]
