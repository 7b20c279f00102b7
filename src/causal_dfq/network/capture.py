"""One capture of the user's network: a flat graph of tensor operations, batch size left open."""

from __future__ import annotations

import copy
import logging
import warnings

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from causal_dfq.errors import CaptureError
from causal_dfq.network.constants import drop_neutral_operations, fold_constants
from causal_dfq.network.error_text import failing_line, first_line
from causal_dfq.network.operations import aten, has_running_statistics
from causal_dfq.network.regions import inline_regions
from causal_dfq.network.weights import check_finite

EXAMPLE_BATCH = 2
_DROPOUT = frozenset(
    {aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default}
)
_RELATIVE_TOLERANCE = 1e-3
_ABSOLUTE_TOLERANCE = 1e-4
_SPELLING = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def capture(network: nn.Module, input_shape: tuple[int, int, int]) -> fx.GraphModule:
    """The graph of a classifier's forward in evaluation mode; the network is left untouched.

    The graph holds ATen operations without side effects; dropout is gone. Parameters are copies, in
    float32 on the CPU, under the network's own names.

    Args:
        network: images (N, C, H, W) -> logits (N, K).
        input_shape: (C, H, W).

    Raises:
        CaptureError: the network cannot be copied, its forward fails on that shape, gives something else
            than logits, or cannot be captured by torch.export (the message names the line), or the
            captured graph gives other logits.
        WeightsError: a parameter or buffer is not finite.
    """
    check_finite(network)
    network = _evaluation_copy(network)
    example = _example(input_shape)
    logits = _logits(network, example)
    program = _export(network, example)
    module = _cleaned(program.module())
    if not _is_same(_give_metadata(module, example.clone()), logits):
        # A view was written into: torch's own functionalization takes longer and sees through it.
        functional = program.run_decompositions({}).module()
        _compose_batch_norm(functional)
        module = _cleaned(functional)
        _check_same(_give_metadata(module, example.clone()), logits)
    module.recompile()
    clean = fx.GraphModule(module, module.graph)
    for parameter in clean.parameters():
        parameter.requires_grad_(False)
    return clean


def _evaluation_copy(network: nn.Module) -> nn.Module:
    try:
        network = copy.deepcopy(network).cpu().float()
    except Exception as error:
        raise CaptureError(
            f"the network cannot be copied: {first_line(error)}; if it computes weights in a hook, fold them into "
            "plain ones first, with torch.nn.utils.remove_weight_norm(layer) for example"
        ) from error
    try:
        network.eval()
    except NotImplementedError:
        # A module of torch.export refuses eval(), and its siblings have not been reached.
        for module in network.modules():
            module.training = False
    for module in network.modules():
        if isinstance(module, fx.GraphModule):
            _set_evaluation(module)
            module.recompile()
    return network


def _example(input_shape: tuple[int, int, int]) -> Tensor:
    """Images of noise, the same ones each time: on images of zeros a wrong graph can give right logits."""
    try:
        return torch.randn(EXAMPLE_BATCH, *input_shape, generator=torch.Generator().manual_seed(0))
    except (MemoryError, RuntimeError, OverflowError, TypeError) as error:
        raise CaptureError(
            f"images of shape {_text(input_shape)} cannot be had: {first_line(error)}; "
            "give the shape that the network was trained on with --input-shape CxHxW"
        ) from error


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _logits(network: nn.Module, example: Tensor) -> Tensor:
    shape = _text(tuple(example.shape[1:]))
    try:
        with torch.no_grad():
            # The network may write into its input.
            logits = network(example.clone())
    except Exception as error:
        raise CaptureError(
            f"the network fails on images of shape {shape}: {first_line(error)}; "
            "give the shape it was trained on with --input-shape CxHxW"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != len(example):
        found = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise CaptureError(
            f"the network must give logits of shape (N, classes), but on {len(example)} images of shape {shape} "
            f"it gives {found}; wrap it in a module that returns the logits alone"
        )
    return logits.clone()


def _compose_batch_norm(module: torch.nn.Module) -> None:
    """BatchNorm as the network called it: torch's functionalization takes it apart."""
    assert isinstance(module, fx.GraphModule)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target != aten._native_batch_norm_legit_no_training.default:
            continue
        with module.graph.inserting_before(node):
            whole = module.graph.call_function(aten.batch_norm.default, (*node.args[:5], False, *node.args[5:], False))
        for result in list(node.users):
            # Its first result; the others are statistics that evaluation does not change.
            whole.meta = dict(result.meta)
            result.replace_all_uses_with(whole)
            module.graph.erase_node(result)
        module.graph.erase_node(node)


def _cleaned(module: torch.nn.Module) -> fx.GraphModule:
    """The graph of an exported program without calls in place, dropout, and what it computes of constants alone."""
    assert isinstance(module, fx.GraphModule)
    module = _plain(module)
    inline_regions(module)
    _make_functional(module)
    _set_evaluation(module)
    _remove_dropout(module)
    _remove_assertions(module)
    fold_constants(module)
    drop_neutral_operations(module)
    module.graph.eliminate_dead_code()
    return module


def _remove_assertions(module: fx.GraphModule) -> None:
    """They hold tensors to the type and device of the capture; training and evaluation may have others."""
    for node in list(module.graph.nodes):
        if node.target == aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)


def _export(network: nn.Module, example: Tensor) -> ExportedProgram:
    quiet = logging.getLogger("torch")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                network, (example.clone(),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
    except Exception as error:
        line = failing_line(error)
        raise CaptureError(
            f"the network cannot be captured by torch.export: {first_line(error)}{f' (at {line})' if line else ''}; "
            "rewrite that line without a branch on tensor values or on the batch size"
        ) from error
    finally:
        quiet.setLevel(level)
    return program


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """The graph without torch.export's guards and its nesting of arguments and results."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    graph = fx.Graph()
    results = graph.graph_copy(module.graph, {})
    graph.output(results[0] if isinstance(results, tuple | list) else results)
    return fx.GraphModule(module, graph)


def _functional_overload(target: object) -> object | None:
    """aten.relu_.default -> aten.relu.default; None for a call that changes nothing in place."""
    packet = getattr(target, "overloadpacket", None)
    name = getattr(packet, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    functional = getattr(aten, name.removesuffix("_"))
    return getattr(functional, target._overloadname)  # type: ignore[attr-defined, no-any-return]


def _make_functional(module: fx.GraphModule) -> None:
    """Replaces calls in place; whoever read the changed tensor afterwards now reads the result."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        node.target = _SPELLING.get(node.target, node.target)
        functional = _functional_overload(node.target)
        if functional is None:
            continue
        node.target = functional
        changed = node.args[0]
        is_later = False
        for user in list(module.graph.nodes):
            is_later = is_later or user is node
            if is_later and user is not node:
                user.replace_input_with(changed, node)


def _set_evaluation(module: fx.GraphModule) -> None:
    """BatchNorm and dropout as in evaluation mode: a file of torch.export keeps the mode of its capture."""
    for node in module.graph.nodes:
        if has_running_statistics(node):
            node.args = (*node.args[:5], False, *node.args[6:])
        elif node.op == "call_function" and node.target in _DROPOUT:
            node.args = (*node.args[:2], False)


def _remove_dropout(module: fx.GraphModule) -> None:
    removed = _DROPOUT | {aten.contiguous.default, aten.clone.default}
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in removed:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


class _Shapes(fx.Interpreter):
    """Notes the value of every node on an example, detached from its data."""

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        node.meta["val"] = value.to("meta") if isinstance(value, Tensor) else value
        return value


@torch.no_grad()
def _give_metadata(module: fx.GraphModule, example: Tensor) -> Tensor:
    logits: Tensor = _Shapes(module).run(example)
    return logits


def _is_same(logits: Tensor, expected: Tensor) -> bool:
    largest = expected.abs().max().item() if expected.numel() else 0.0
    tolerance = _ABSOLUTE_TOLERANCE * largest
    return torch.allclose(logits, expected, rtol=_RELATIVE_TOLERANCE, atol=tolerance, equal_nan=True)


def _check_same(logits: Tensor, expected: Tensor) -> None:
    if not _is_same(logits, expected):
        difference = (logits - expected).abs().max().item()
        raise CaptureError(
            f"the captured graph gives other logits than the network, by up to {difference:.3g} on random images, for "
            "example because the forward draws random numbers, which it must not in evaluation mode"
        )
