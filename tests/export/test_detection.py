"""A detector's backbone and head: one tensor out of both, quantized, exported, and the same boxes in the file."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from causal_dfq.export.onnx_file import export_onnx
from causal_dfq.export.verify import onnxruntime_session, synthetic_images
from tests.export.conftest import finished_network

SIDE = 96
COORDINATES = 4


class Outputs(nn.Module):
    """What backbone and head of an SSD compute: images -> (N, anchors * (4 + classes)), boxes before classes."""

    def __init__(self, detector: SSD) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Tensor:
        found = self.head(list(self.backbone(images).values()))
        return torch.cat([found["bbox_regression"].flatten(1), found["cls_logits"].flatten(1)], 1)


def decoded(detector: SSD, images: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (N, anchors, 4) in pixels and class probabilities (N, anchors, classes)."""
    with torch.no_grad():
        features = list(detector.backbone(images).values())
    sizes = [(SIDE, SIDE)] * len(images)
    anchors = detector.anchor_generator(ImageList(images, sizes), features)
    count = len(anchors[0])
    offsets = outputs[:, : COORDINATES * count].unflatten(1, (count, COORDINATES))
    scores = outputs[:, COORDINATES * count :].unflatten(1, (count, -1)).softmax(-1)
    boxes = [detector.box_coder.decode_single(offset, anchor) for offset, anchor in zip(offsets, anchors, strict=True)]
    return torch.stack(boxes), scores


def test_boxes_and_classes_of_ssdlite_are_the_same_in_the_file(tmp_path: Path) -> None:
    detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    quantized = finished_network(Outputs(detector), side=SIDE)
    exported = export_onnx(quantized, tmp_path / "detector.onnx")
    assert exported.fusion.fused > 0.8 * exported.fusion.total
    images = synthetic_images(quantized.record.options, 4, seed=2)
    (found,) = onnxruntime_session(exported.path.read_bytes()).run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = quantized(images)
    boxes, scores = decoded(detector, images, torch.from_numpy(found))
    simulated_boxes, simulated_scores = decoded(detector, images, expected)
    assert boxes.shape[1] > 100
    overlaps = [box_iou(one, other).diagonal() for one, other in zip(boxes, simulated_boxes, strict=True)]
    assert float(torch.stack(overlaps).min()) > 0.99
    torch.testing.assert_close(scores, simulated_scores, rtol=0, atol=1e-2)
    # They are the detector's, as far as 8 bits go.
    with torch.no_grad():
        float_boxes, _ = decoded(detector, images, quantized.reference(images))
    far = [box_iou(one, other).diagonal() for one, other in zip(boxes, float_boxes, strict=True)]
    assert float(torch.stack(far).mean()) > 0.9
