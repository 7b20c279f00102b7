"""What a person reads when a network is quantized."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from causal_dfq.network.operations import module_path, operation_name, unrounded_layers
from causal_dfq.pipeline import chosen_recipe
from causal_dfq.quantized import QuantizedNetwork
from causal_dfq.training.analysis import PREFIX
from causal_dfq.training.budget import Recipe

_IMPRINTED = "scenes imprinted by BatchNorm's statistics and the logits: at this size no generator is trained"
_IMPRINTED_BY_LOGITS = "scenes imprinted by the logits alone: the network has no BatchNorm"


def table_of_facts() -> Table:
    """An empty table for names and what is told of each; a path longer than the terminal is wide is not cut."""
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def summary_table(quantized: QuantizedNetwork, folder: Path) -> Table:
    """Bits, time, agreement, the causal analysis and the files of a finished run in a folder."""
    record = quantized.record
    tensors = quantized.quantized_tensors()
    weights = [tensor.bits for tensor in tensors if tensor.kind == "weight"]
    activations = [tensor.bits for tensor in tensors if tensor.kind == "activation"]
    table = table_of_facts()
    table.add_row("bits", f"{record.options.bits}, protocol {record.options.protocol}, effort {record.options.effort}")
    table.add_row("weights", f"{len(weights)} layers at {_widths(weights)}")
    if in_float := unrounded_layers(quantized.graph_module.graph):
        named = ", ".join(f"{module_path(node)} ({operation_name(node)})" for node in in_float)
        table.add_row("in float", f"the weights of {escape(named)}")
    table.add_row("activations", f"{len(activations)} grids at {_widths(activations)}")
    metrics = record.last_metrics
    table.add_row("time", f"{record.seconds:.0f} s, {record.steps:,} steps on {record.device}")
    if record.options.method == "causal" and not record.causal_model:
        table.add_row("images", _IMPRINTED if record.has_statistics else _IMPRINTED_BY_LOGITS)
    if "agreement" in metrics:
        agreement = 100 * metrics["agreement"]
        table.add_row("agreement", f"{agreement:.0f} % with the float network on the last synthetic batch")
    if PREFIX + "cka" in metrics:
        table.add_row(*_analysis(metrics))
    if record.options.memory_limit is not None:
        used = Recipe(**record.recipe)  # type: ignore[arg-type]
        limit, has_generator = record.options.memory_limit, bool(record.causal_model)
        table.add_row("memory", _batches(used, chosen_recipe(record.options), limit, has_generator))
    table.add_row(
        "written", f"{escape(str(folder))}: model.safetensors, float.safetensors, config.json, log.jsonl, samples.png"
    )
    return table


def _analysis(metrics: dict[str, float]) -> tuple[str, str]:
    """What was done to the images, and what came of it."""
    found = {name.removeprefix(PREFIX): value for name, value in metrics.items() if name.startswith(PREFIX)}
    likeness = f"CKA of Q to P {found['cka']:.2f}"
    if "attention_overlap" in found:
        likeness += f", Grad-CAM overlap {found['attention_overlap']:.2f}"
    if "content_accuracy_pretrained" not in found:
        return "likeness", likeness
    p, q = (100 * found[f"content_accuracy_{network}"] for network in ("pretrained", "quantized"))
    return "do(style)", f"the content's class is seen by P in {p:.0f} %, by Q in {q:.0f} %; {likeness}"


def _batches(used: Recipe, full: Recipe, limit: int, has_generator: bool) -> str:
    def synthesized(recipe: Recipe) -> int:
        return recipe.generator_images if has_generator else recipe.pool_batch

    sizes = f"{synthesized(used)} and {used.student_images}"
    if used == full:
        return f"full batches of {sizes} images fit into {limit / 2**30:.1f} GB"
    usual = f"{synthesized(full)} and {full.student_images}"
    return f"batches shrunk from {usual} to {sizes} images, to fit into {limit / 2**30:.1f} GB"


def _widths(bits: list[int]) -> str:
    counts = {width: bits.count(width) for width in sorted(set(bits))}
    if len(counts) == 1:
        return f"{next(iter(counts))} bits"
    return ", ".join(f"{width} bits ({count})" for width, count in counts.items()) or "32 bits"
