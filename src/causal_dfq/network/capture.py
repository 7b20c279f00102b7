"""One capture of the user's network: a flat graph of tensor operations, batch size left open."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from causal_dfq.errors import CaptureError
from causal_dfq.network.constants import drop_neutral_operations, fold_constants, make_beside_images
from causal_dfq.network.error_text import failing_line, first_line
from causal_dfq.network.in_place import functional_overload, writes_through_views
from causal_dfq.network.operations import aten, attribute, has_running_statistics, module_path
from causal_dfq.network.regions import inline_regions
from causal_dfq.network.serialize import is_storable
from causal_dfq.network.weights import check_finite

EXAMPLE_BATCH = 2
_DROPOUT = frozenset(
    {
        *(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default),
        *(aten.alpha_dropout.default, aten.alpha_dropout_.default),
        *(aten.feature_alpha_dropout.default, aten.feature_alpha_dropout_.default),
    }
)
_FAR = 8.0
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
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        network = network.module
    check_finite(network)
    network = _evaluation_copy(network)
    example = _example(input_shape)
    logits = _logits(network, example)
    program = _export(network, example)
    exported = program.module()
    # Torch's own functionalization takes longer, and sees through views that are written into.
    module = _cleaned(_functionalized(program) if writes_through_views(exported) else exported)
    _check_same(_give_metadata(module, example.clone()), logits)
    _check_operations(module)
    module.recompile()
    clean = fx.GraphModule(module, module.graph)
    for part in clean.modules():
        # Whatever the network saves: the graph is nothing without them.
        part._non_persistent_buffers_set.clear()
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
        _move_plain_tensors(module)
        if isinstance(module, fx.GraphModule):
            _set_evaluation(module)
            module.recompile()
    return network


def _move_plain_tensors(module: nn.Module) -> None:
    """Those that are attributes alone, neither parameters nor buffers: no module moves them itself."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor):
            setattr(module, name, value.float().cpu() if value.is_floating_point() else value.cpu())


def _example(input_shape: tuple[int, int, int]) -> Tensor:
    """Images of noise, the same ones each time: on images of zeros a wrong graph can give right logits.

    The last one is far from the others, where functions clip that leave the others alone.
    """
    try:
        images = torch.randn(EXAMPLE_BATCH, *input_shape, generator=torch.Generator().manual_seed(0))
        images[-1] *= _FAR
        return images
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
    if logits.shape[1] == 1:
        raise CaptureError(
            "the network gives a single logit, of which nothing can be distilled; wrap it in a module that returns "
            "one for each of both classes: torch.cat([torch.zeros_like(y), y], 1)"
        )
    return logits.clone()


def _functionalized(program: ExportedProgram) -> fx.GraphModule:
    """The graph without writes into tensors, but with BatchNorm as the network called it."""
    try:
        module = program.run_decompositions({}).module()
    except Exception as error:
        raise CaptureError(
            f"the network writes into tensors that it goes on reading, and torch.export cannot undo it: "
            f"{first_line(error)}; rewrite what is in place, such as x.clamp_(0) or x[0] = y, with a new tensor"
        ) from error
    assert isinstance(module, fx.GraphModule)
    _compose_batch_norm(module)
    return module


def _check_operations(module: fx.GraphModule) -> None:
    """Refuses what no quantized network could be saved with, before minutes go into it."""
    for node in module.graph.nodes:
        is_branch = node.op == "get_attr" and isinstance(attribute(module, str(node.target)), fx.GraphModule)
        if is_branch or not is_storable(node):
            what = "a branch or loop of torch.cond and its like" if is_branch else f"the operation {node.target}"
            raise CaptureError(
                f"{what} at {module_path(node if not is_branch else next(iter(node.users)))} is none of torch's own on "
                "tensors and cannot be quantized; write it with torch's own functions, or leave it outside of the "
                "network"
            )


def _compose_batch_norm(module: fx.GraphModule) -> None:
    """BatchNorm in one piece: torch's functionalization takes it apart."""
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
    _remove_identities(module)
    _remove_assertions(module)
    fold_constants(module)
    make_beside_images(module)
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
                network, (example.clone(),), dynamic_shapes=_open_batch(network), strict=False
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


def _open_batch(network: nn.Module) -> tuple[object, ...]:
    """The batch size left open, in the form that the signature of the forward asks for."""
    images = {0: torch.export.Dim.DYNAMIC}
    first = next(iter(inspect.signature(network.forward).parameters.values()), None)
    return ((images,),) if first is not None and first.kind is first.VAR_POSITIONAL else (images,)


def _plain(module: fx.GraphModule) -> fx.GraphModule:
    """The graph without torch.export's guards and its nesting of arguments and results."""
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    graph = fx.Graph()
    results = graph.graph_copy(module.graph, {})
    graph.output(results[0] if isinstance(results, tuple | list) else results)
    return fx.GraphModule(module, graph)


def _make_functional(module: fx.GraphModule) -> None:
    """Replaces calls in place; whoever read the changed tensor afterwards now reads the result."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        node.target = _SPELLING.get(node.target, node.target)
        functional = functional_overload(node.target)
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


def _remove_identities(module: fx.GraphModule) -> None:
    """Dropout, copies, and what keeps gradients from a part: the quantized network is trained as a whole."""
    removed = _DROPOUT | {aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default}
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in removed:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


class _Shapes(fx.Interpreter):
    """Notes the value of every node on an example, detached from its data."""

    def run_node(self, node: fx.Node) -> object:
        value = super().run_node(node)
        node.meta["val"] = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)
        return value


@torch.no_grad()
def _give_metadata(module: fx.GraphModule, example: Tensor) -> Tensor:
    logits: Tensor = _Shapes(module).run(example)
    return logits


def _check_same(logits: Tensor, expected: Tensor) -> None:
    largest = expected.abs().max().item() if expected.numel() else 0.0
    tolerance = _ABSOLUTE_TOLERANCE * largest
    if not torch.allclose(logits, expected, rtol=_RELATIVE_TOLERANCE, atol=tolerance, equal_nan=True):
        difference = (logits - expected).abs().max().item()
        raise CaptureError(
            f"the captured graph gives other logits than the network, by up to {difference:.3g} on random images, for "
            "example because the forward draws random numbers, which it must not in evaluation mode"
        )
