"""One capture of the user's network: a flat graph of tensor operations, batch size left open."""

from __future__ import annotations

import copy
import logging
import warnings

import torch
from torch import Tensor, fx, nn

from causal_dfq.errors import CaptureError
from causal_dfq.network.operations import aten
from causal_dfq.network.weights import check_finite

EXAMPLE_BATCH = 2
_SPELLING = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


def capture(network: nn.Module, input_shape: tuple[int, int, int]) -> fx.GraphModule:
    """The graph of a classifier's forward in evaluation mode; the network is left untouched.

    The graph holds ATen operations without side effects; dropout is gone. Parameters are copies, in
    float32 on the CPU, under the network's own names.

    Args:
        network: images (N, C, H, W) -> logits (N, K).
        input_shape: (C, H, W).

    Raises:
        CaptureError: the forward fails on that shape, gives something else than logits, or cannot be
            captured by torch.export (the message names the line).
        WeightsError: a parameter or buffer is not finite.
    """
    check_finite(network)
    network = _evaluation_copy(network)
    example = torch.zeros(EXAMPLE_BATCH, *input_shape)
    _check_forward(network, example)
    module = _export(network, example)
    module = _plain(module)
    _make_functional(module)
    _remove_dropout(module)
    module.graph.eliminate_dead_code()
    _give_metadata(module, example)
    module.recompile()
    clean = fx.GraphModule(module, module.graph)
    for parameter in clean.parameters():
        parameter.requires_grad_(False)
    return clean


def _evaluation_copy(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network).cpu().float()
    # A module of torch.export refuses eval(): it was captured in the mode that it keeps.
    if "_guards_fn" not in dict(network.named_children()) and not isinstance(network, fx.GraphModule):
        network.eval()
    return network


def _check_forward(network: nn.Module, example: Tensor) -> None:
    shape = "x".join(map(str, example.shape[1:]))
    try:
        with torch.no_grad():
            logits = network(example)
    except Exception as error:
        raise CaptureError(
            f"the network fails on images of shape {shape}: {_first_line(error)}; "
            "give the shape it was trained on with --input-shape CxHxW"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != len(example):
        found = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise CaptureError(
            f"the network must give logits of shape (N, classes), but on {len(example)} images of shape {shape} "
            f"it gives {found}; wrap it in a module that returns the logits alone"
        )


def _export(network: nn.Module, example: Tensor) -> fx.GraphModule:
    quiet = logging.getLogger("torch")
    level = quiet.level
    quiet.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                network, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
            module = program.module()
    except Exception as error:
        raise CaptureError(
            f"the network cannot be captured by torch.export: {_first_line(error)}{_user_line(error)}; "
            "rewrite that line without a branch on tensor values or on the batch size"
        ) from error
    finally:
        quiet.setLevel(level)
    assert isinstance(module, fx.GraphModule)
    return module


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _user_line(error: BaseException) -> str:
    """Where in the user's code the capture stopped: the innermost frame outside of torch."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if "/torch/" not in filename and "causal_dfq/network" not in filename and not filename.startswith("<"):
            frames.append(f"{filename}, line {traceback.tb_lineno}")
        traceback = traceback.tb_next
    return f" (at {frames[-1]})" if frames else ""


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


def _remove_dropout(module: fx.GraphModule) -> None:
    removed = {
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.contiguous.default,
        aten.clone.default,
    }
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
def _give_metadata(module: fx.GraphModule, example: Tensor) -> None:
    _Shapes(module).run(example)
