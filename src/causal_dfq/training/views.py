"""The two networks as training looks at them: logits, features on the way, BatchNorm inputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from causal_dfq.fusion import with_gradient_in_channels_last
from causal_dfq.network.operations import (
    CONVOLUTIONS,
    VOLUME_CONVOLUTIONS,
    aten,
    attribute,
    class_count,
    input_name,
    weight_layer_nodes,
    with_outputs,
)
from causal_dfq.network.units import part_between
from causal_dfq.quantizer.modules import ActivationQuantizer
from causal_dfq.quantizer.placement import integer_tensors, quantized_tensors
from causal_dfq.quantizer.ranges import ObservedValues, affine_over_bounds, merge, observe
from causal_dfq.synthesis.measured_norm import measured_norm, with_statistics
from causal_dfq.synthesis.swing import with_swing
from causal_dfq.training.depthwise import constant_depthwise, grouped_in_float32
from causal_dfq.training.measured_rounding import rounding_of, with_feature_errors


@dataclass(frozen=True)
class PretrainedView:
    """P's logits (N, K), its penultimate embedding (N, D), and its values of every tensor that Q rounds."""

    logits: Tensor
    embedding: Tensor
    features: list[Tensor]


@dataclass(frozen=True)
class QuantizedView:
    """Q's logits (N, K), its penultimate embedding (N, D), and how far its features are from P's.

    Args:
        feature_error: the mean relative error of the features before they are rounded; 0 of none.
        attended: the last feature map (N, C, h, w) with several places, rounded; None without one.
    """

    logits: Tensor
    embedding: Tensor
    feature_error: Tensor
    attended: Tensor | None


class NetworkViews:
    """P with its BatchNorms, P folded, and Q, as functions of a batch of images.

    On a CPU with bfloat16 arithmetic the views run under autocast; of P folded and of Q, grouped convolutions stay in
    float32, where their gradient is faster.
    """

    def __init__(self, captured: fx.GraphModule, folded: fx.GraphModule, quantized: fx.GraphModule) -> None:
        self.captured, self.folded, self.quantized = captured, folded, quantized
        self.classes = class_count(captured)
        features = [
            node.name
            for node in integer_tensors(folded.graph)
            if node.op != "placeholder" and not takes_infinite_constant(folded, node)
        ]
        self.attended = attended_feature(folded)
        attended = [] if self.attended is None else [self.attended]
        penultimate = input_name(weight_layer_nodes(folded.graph)[-1])
        by_name = {node.name: node for node in quantized.graph.nodes}
        of_quantized = [input_name(weight_layer_nodes(quantized.graph)[-1])]
        of_quantized += [rounding_of(by_name[name]).name for name in attended]
        self.statistics = _for_training(with_statistics(captured))
        self._pretrained = _for_training(with_outputs(folded, [*features, penultimate]))
        self._attending = with_outputs(folded, attended)
        self._quantized = _for_training(with_feature_errors(quantized, features, of_quantized))
        self._quantized_alone = _for_training(with_outputs(quantized, []))
        self._device = torch.device("cpu")
        self._uses_bfloat16 = has_bfloat16_arithmetic(self._device)

    def to(self, device: torch.device) -> NetworkViews:
        """Moves the networks; returns itself."""
        self._device = device
        for view in (
            self.captured,
            self.folded,
            self.quantized,
            self.statistics,
            self._pretrained,
            self._attending,
            self._quantized,
            self._quantized_alone,
        ):
            view.to(device)
        self._uses_bfloat16 = has_bfloat16_arithmetic(device)
        return self

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 autocast where the machine computes in it."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._uses_bfloat16)

    @contextlib.contextmanager
    def in_float32(self) -> Iterator[None]:
        """The views without autocast: bfloat16 errs by as much as a grid of 8 bits does."""
        before, self._uses_bfloat16 = self._uses_bfloat16, False
        try:
            yield
        finally:
            self._uses_bfloat16 = before

    def swung_statistics(self, random: torch.Generator) -> fx.GraphModule:
        """`statistics` with swings before the strided convolutions, for `statistics_through`."""
        return _for_training(with_swing(with_statistics(self.captured), random))

    def statistics_view(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
        """P: logits (N, K) in float32, mean and variance of each BatchNorm's input, the input of the middle one."""
        return self.statistics_through(self.statistics, images)

    def statistics_through(
        self, view: fx.GraphModule, images: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
        """`statistics_view` by a view made of `statistics`."""
        with self.autocast():
            logits, statistics, middle = view(images.contiguous(memory_format=torch.channels_last))
        # Losses see it in rows; its gradient meets others in P, which lie in channels_last.
        return logits.float(), statistics, with_gradient_in_channels_last(middle) if middle.ndim == 4 else middle

    def pretrained_view(self, images: Tensor) -> PretrainedView:
        """P on images (N, C, H, W)."""
        logits, values = self._call(self._pretrained, images)
        return PretrainedView(logits, embedding(values[-1]), values[:-1])

    def quantized_view(self, images: Tensor, targets: list[Tensor]) -> QuantizedView:
        """Q on images (N, C, H, W); `targets` are the features of P's view."""
        with self.autocast():
            logits, errors, (penultimate, *attended) = self._quantized(
                images.contiguous(memory_format=torch.channels_last), *targets
            )
        error = torch.stack(errors).mean() if errors else logits.new_zeros(())
        return QuantizedView(logits.float(), embedding(penultimate), error, attended[0] if attended else None)

    def class_importance(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """P's last feature map (N, C, h, w), and the mean over places (N, C, 1, 1) of the class logit's gradient there.

        None where no feature map has several places. Source: Selvaraju et al., "Grad-CAM" (ICCV 2017), eq. 1.
        """
        if self.attended is None:
            return None
        _, (features,), gradient = self.class_gradient(self._attending, images, labels)
        return features, gradient.float().mean((2, 3), keepdim=True)

    def class_gradient(
        self, view: fx.GraphModule, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """A view's logits (N, K) and values, and the gradient of the logits of labels (N,) in its last value."""
        with self.autocast(), torch.enable_grad():
            # The way to a value has a gradient although P's parameters are constants.
            logits, values = view(images.detach().requires_grad_())
            chosen = logits.float().gather(1, labels[:, None]).sum()
            (gradient,) = torch.autograd.grad(chosen, values[-1])
        return logits.detach().float(), [value.detach() for value in values], gradient

    def pretrained_logits(self, images: Tensor) -> Tensor:
        """P's logits (N, K)."""
        return self._call(self._pretrained, images)[0]

    def quantized_logits(self, images: Tensor) -> Tensor:
        """Q's logits (N, K)."""
        return self._call(self._quantized_alone, images)[0]

    def part(self, network: fx.GraphModule, source: str, result: str) -> fx.GraphModule:
        """A part of P or Q, from one tensor to another, as training runs it; see `through`."""
        return _for_training(part_between(network, source, result))

    def through(self, part: nn.Module, values: Tensor) -> Tensor:
        """What a part makes of values (N, ...), in the type that training computes in."""
        with self.autocast():
            is_map = values.ndim == 4
            result: Tensor = part(values.contiguous(memory_format=torch.channels_last) if is_map else values)
        return result

    def _call(self, view: fx.GraphModule, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        with self.autocast():
            logits, values = view(images.contiguous(memory_format=torch.channels_last))
        return logits.float(), values

    @torch.no_grad()
    def calibrate(
        self, batches: Iterable[Tensor], pixel_bounds: tuple[tuple[float, ...], tuple[float, ...]] | None
    ) -> None:
        """Sets every activation quantizer to the grid of least squared error on batches (N, C, H, W).

        The input's grid spans black to white where the normalization is known.
        """
        tensors = quantized_tensors(self.quantized)
        names = [name for names in tensors.values() for name in names]
        view = with_outputs(self.folded, names)
        observed: dict[str, list[ObservedValues]] = {name: [] for name in names}
        for images in batches:
            # A quantizer keeps a sample of each batch: all values together may not fit into memory.
            for name, values in zip(names, self._call(view, images)[1], strict=True):
                observed[name].append(observe(values))
        inputs = {node.name for node in self.folded.graph.nodes if node.op == "placeholder"}
        for target, sources in tensors.items():
            quantizer = attribute(self.quantized, target)
            assert isinstance(quantizer, ActivationQuantizer)
            if pixel_bounds is not None and inputs.issuperset(sources):
                low, high = min(pixel_bounds[0]), max(pixel_bounds[1])
                quantizer.set_range(*affine_over_bounds(low, high, quantizer.bits))
            else:
                quantizer.calibrate(merge([seen for source in sources for seen in observed[source]]))


def attended_feature(folded: fx.GraphModule) -> str | None:
    """The last feature map with more than one place, which Grad-CAM looks at; None without one."""
    last = None
    for node in integer_tensors(folded.graph):
        value = node.meta["val"]
        if node.op != "placeholder" and value.ndim == 4 and value.shape[2] * value.shape[3] > 1:
            last = node.name
    return last


def takes_infinite_constant(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation reads infinite numbers, as a mask of attention holds: it has no distance to another."""
    stored = [attribute(module, str(source.target)) for source in node.all_input_nodes if source.op == "get_attr"]
    numbers = [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, float)]
    tensors = [value for value in stored if isinstance(value, Tensor) and value.is_floating_point()]
    return any(map(math.isinf, numbers)) or any(bool(tensor.isinf().any()) for tensor in tensors)


def embedding(features: Tensor) -> Tensor:
    """(N, D, ...) -> (N, D): what the classifier reads, averaged over places."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def has_bfloat16_arithmetic(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware; elsewhere autocast would slow it down."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _volume_convolution(features: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any) -> Tensor:
    """In float32: on a CPU torch's gradient of the weight is not finite in bfloat16."""
    with torch.autocast(features.device.type, enabled=False):
        bias = None if bias is None else bias.float()
        # Whether the padding is a number or a word, torch sees.
        result: Tensor = functional.conv3d(features.float(), weight.float(), bias, *options)
    return result


def _constant_convolution(weight: Tensor) -> Callable[..., Tensor]:
    """A convolution with groups whose weight (O, C / G, kh, kw) is a constant."""
    return constant_depthwise if weight.shape[1] == 1 else aten.conv2d.default


def _for_training(view: fx.GraphModule) -> fx.GraphModule:
    for node in list(view.graph.nodes):
        if node.op != "call_function" or node.target not in CONVOLUTIONS:
            continue
        # BatchNorm and quantizers see to the format of a gradient themselves.
        readers = [user for user in node.users if user.op == "call_function" and user.target is not measured_norm]
        if readers and node.meta["val"].ndim == 4:
            with view.graph.inserting_after(node):
                same = view.graph.call_function(with_gradient_in_channels_last, (node,))
            for user in readers:
                user.replace_input_with(node, same)
        if node.target in VOLUME_CONVOLUTIONS:
            node.target = _volume_convolution
        elif node.target == aten.conv2d.default and len(node.args) > 6:
            groups, weight = node.args[6], node.args[1]
            value = weight.meta.get("val") if isinstance(weight, fx.Node) else None
            if groups > 1:
                # Of P folded and of Q the graph makes the weights, which may be trained.
                node.target = grouped_in_float32 if value is None else _constant_convolution(value)
    view.recompile()
    return view
