"""The networks that coverage is measured on: all classifiers of torchvision, and timm's families by their smallest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torchvision.models
from torch import nn
from torchvision.models import get_model, list_models

_SMALL_SIDE = 64
# Where the architecture asks for another side, or can be told that images are small.
_TORCHVISION_SIDES = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}
_TIMM_SIDES = {"halonet26t": 256}
_TOLD_THEIR_SIDE = ("vit_",)
# Minutes each: they come last.
_LARGE = ("vgg", "vit_", "_large", "_base", "convnext_small", "_v2_l", "_32gf", "_16gf", "128gf", "64x4d", "101_2")

# A small network of each of timm's convolutional and hybrid families, less those that torchvision has as well, and
# its best known transformers.
_TIMM = """
botnet26t_256 caformer_s18 coat_lite_tiny coatnet_nano_rw_224 convmixer_768_32 convnext_atto convnextv2_atto csatv2
cspdarknet53 davit_tiny deit_tiny_patch16_224 dla34 dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_es efficientnet_lite0 efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw fastvit_t8 fasternet_t0 fbnetc_100
focalnet_tiny_srf gcresnext26ts gernet_s ghostnet_100 halonet26t hardcorenas_a hgnetv2_b0 hrnet_w18_small
inception_next_atto lambda_resnet26t lcnet_050 levit_128s mambaout_femto mixer_s32_224 mixnet_s mobilenetv1_100
mobilenetv4_conv_small mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 nextvit_small nf_resnet26
nfnet_l0 poolformer_s12 pvt_v2_b0 rdnet_tiny regnetz_b16 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s
resmlp_12_224 resnest14d resnet26t resnetv2_50 rexnet_100 selecsls42 seresnext26t_32x4d shvit_s1 skresnet18 starnet_s1
swiftformer_xs swin_tiny_patch4_window7_224 tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_a tresnet_m twins_pcpvt_small
visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 xception41 xcit_nano_12_p16_224
"""


@dataclass(frozen=True)
class Subject:
    """A network by the name that the command line takes, the side of its images, and how it is built."""

    name: str
    side: int
    build: Callable[[], nn.Module]


def _torchvision(name: str) -> Subject:
    side = _TORCHVISION_SIDES.get(name, _SMALL_SIDE)
    told: dict[str, Any] = {"image_size": side} if name.startswith(_TOLD_THEIR_SIDE) else {}
    return Subject(f"torchvision:{name}", side, partial(get_model, name, weights=None, **told))


def _timm(name: str) -> Subject:
    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    side = config.input_size[1] if config.fixed_input_size else _TIMM_SIDES.get(name, _SMALL_SIDE)
    return Subject(f"timm:{name}", side, partial(timm.create_model, name, pretrained=False))


def _all() -> tuple[Subject, ...]:
    names = list_models(module=torchvision.models)
    large = [name for name in names if any(part in name for part in _LARGE)]
    small = [name for name in names if name not in large]
    return (*map(_torchvision, small), *map(_timm, _TIMM.split()), *map(_torchvision, large))


SUBJECTS = _all()
