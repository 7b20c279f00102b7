"""The two networks as training looks at them: logits, features on the way, BatchNorm inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from causal_dfq.fusion import with_gradient_in_channels_last
from causal_dfq.network.operations import (
    CONVOLUTIONS,
    aten,
    attribute,
    class_count,
    input_name,
    weight_layer_nodes,
    with_outputs,
)
from causal_dfq.quantizer.modules import ActivationQuantizer
from causal_dfq.quantizer.placement import integer_tensors, quantized_tensors
from causal_dfq.quantizer.ranges import ObservedValues, affine_from_bounds, merge, observe
from causal_dfq.synthesis.measured_norm import measured_norm, with_statistics
from causal_dfq.training.measured_rounding import with_feature_errors


class NetworkViews:
    """P with its BatchNorms, P folded, and Q, as functions of a batch of images.

    On a CPU with bfloat16 arithmetic the views run under autocast; depthwise convolutions stay in
    float32, where their gradient is faster.
    """

    def __init__(self, captured: fx.GraphModule, folded: fx.GraphModule, quantized: fx.GraphModule) -> None:
        self.captured, self.folded, self.quantized = captured, folded, quantized
        self.classes = class_count(captured)
        features = [node.name for node in integer_tensors(folded.graph) if node.op != "placeholder"]
        penultimate = [input_name(weight_layer_nodes(folded.graph)[-1])]
        quantized_penultimate = input_name(weight_layer_nodes(quantized.graph)[-1])
        self._statistics = _for_training(with_statistics(captured))
        self._pretrained = _for_training(with_outputs(folded, features + penultimate))
        self._quantized = _for_training(with_feature_errors(quantized, features, quantized_penultimate))
        self._quantized_alone = _for_training(with_outputs(quantized, []))
        self._device = torch.device("cpu")
        self._uses_bfloat16 = has_bfloat16_arithmetic()

    def to(self, device: torch.device) -> NetworkViews:
        """Moves the networks; returns itself."""
        self._device = device
        for view in (
            self.captured,
            self.folded,
            self.quantized,
            self._statistics,
            self._pretrained,
            self._quantized,
            self._quantized_alone,
        ):
            view.to(device)
        self._uses_bfloat16 = device.type == "cuda" or has_bfloat16_arithmetic()
        return self

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 autocast where the machine computes in it."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._uses_bfloat16)

    def statistics_view(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]], Tensor]:
        """P: logits (N, K) in float32, mean and variance of each BatchNorm's input, the input of the middle one."""
        with self.autocast():
            logits, statistics, middle = self._statistics(images.contiguous(memory_format=torch.channels_last))
        # Losses see it in rows; its gradient meets others in P, which lie in channels_last.
        return logits.float(), statistics, with_gradient_in_channels_last(middle) if middle.ndim == 4 else middle

    def pretrained_view(self, images: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """P: logits (N, K), features of the quantized tensors, penultimate embedding (N, D)."""
        logits, values = self._call(self._pretrained, images)
        return logits, values[:-1], embedding(values[-1])

    def quantized_view(self, images: Tensor, targets: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Q: logits (N, K), the mean relative error of its features (0 of none), penultimate embedding (N, D).

        Features are the tensors of `pretrained_view` before they are rounded; `targets` are P's.
        """
        with self.autocast():
            logits, errors, penultimate = self._quantized(
                images.contiguous(memory_format=torch.channels_last), *targets
            )
        error = torch.stack(errors).mean() if errors else logits.new_zeros(())
        return logits.float(), error, embedding(penultimate)

    def pretrained_logits(self, images: Tensor) -> Tensor:
        """P's logits (N, K)."""
        return self._call(self._pretrained, images)[0]

    def quantized_logits(self, images: Tensor) -> Tensor:
        """Q's logits (N, K)."""
        return self._call(self._quantized_alone, images)[0]

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
            if pixel_bounds is not None and sources[0] in inputs:
                low, high = min(pixel_bounds[0]), max(pixel_bounds[1])
                quantizer.set_range(*affine_from_bounds(low, high, quantizer.bits))
            else:
                quantizer.calibrate(merge([seen for source in sources for seen in observed[source]]))


def embedding(features: Tensor) -> Tensor:
    """(N, D, ...) -> (N, D): what the classifier reads, averaged over places."""
    return features.flatten(2).mean(2) if features.ndim > 2 else features


def has_bfloat16_arithmetic() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere autocast would slow it down."""
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _depthwise_convolution(features: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        result: Tensor = aten.conv2d.default(features.float(), weight.float(), bias, *options)
    return result


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
        if len(node.args) > 6:
            groups, weight = node.args[6], node.args[1]
            value = weight.meta.get("val") if isinstance(weight, fx.Node) else None
            if groups > 1 and (value is None or value.shape[1] == 1):
                node.target = _depthwise_convolution
    view.recompile()
    return view
