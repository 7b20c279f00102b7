"""Where the classes begin in the generator: as far apart as the pre-trained network's classifier sets them. [ours]"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from causal_dfq.network.operations import attribute, class_count, weight_layer_nodes


def classifier_rows(network: fx.GraphModule) -> Tensor | None:
    """What the last layer weighs each class's evidence with, (K, D); None where it has no row for each class."""
    weight = weight_layer_nodes(network.graph)[-1].args[1]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    rows: Tensor = attribute(network, str(weight.target)).detach().float().flatten(1)
    return rows if len(rows) == class_count(network) else None


def class_codes(rows: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Codes (K, size) of mean square 1 from the classifier's rows (K, D): classes that are alike begin alike.

    What the rows have in common is left out, the rest is projected at random, which keeps distances (Johnson and
    Lindenstrauss): what the generator learns of one class then serves its neighbours. [ours]
    """
    projection = torch.randn(rows.shape[1], size, generator=random)
    codes = (rows - rows.mean(0)).cpu() @ projection
    return codes / codes.square().mean().sqrt().clamp_min(torch.finfo(codes.dtype).tiny)
