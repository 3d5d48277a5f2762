"""The published variants of each family, and the small model that ships with the project."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from model.resize import AS_DISPLAYED, ResizeRule

# The label IS the COCO category id: 0 and ten holes are never used (empty names).
COCO_LABELS: tuple[str, ...] = (
    "", "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "", "stop sign", "parking meter", "bench", "bird", "cat",
    "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "", "backpack",
    "umbrella", "", "", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "", "wine glass", "cup", "fork", "knife", "spoon", "bowl",
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
    "cake", "chair", "couch", "potted plant", "bed", "", "dining table", "", "", "toilet", "",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)  # fmt: skip

PUBLISHED_RESIZE = ResizeRule(shorter=800, longest=1333)


@dataclass(frozen=True)
class DeformableDetrConfig:
    """Every number that shapes the network. The defaults are the published multi-scale model."""

    precisions: ClassVar = ("fp32", "bf16", "fp16", "mixed", "int8")  # that are offered
    backbone: Literal["resnet50", "compact"] = "resnet50"
    dilation: bool = False  # stride 16 instead of 32 in the last stage (DC5)
    num_feature_levels: int = 4
    d_model: int = 256
    n_heads: int = 8
    n_points: int = 4
    encoder_layers: int = 6
    decoder_layers: int = 6
    dim_feedforward: int = 1024
    dropout: float = 0.1  # while training
    num_queries: int = 300
    with_box_refine: bool = False
    two_stage: bool = False
    resize: ResizeRule = PUBLISHED_RESIZE
    labels: tuple[str, ...] = COCO_LABELS

    def __post_init__(self) -> None:
        if self.two_stage and not self.with_box_refine:
            raise ValueError("two_stage needs with_box_refine, as published")
        if self.d_model % self.n_heads or self.d_model % 64:
            raise ValueError(f"d_model={self.d_model} must be a multiple of 64 and of n_heads")

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> tuple[str, str]:
        """Equal for models that may have each other's weights."""
        return "Deformable DETR", self.backbone


def deformable_detr() -> DeformableDetrConfig:
    """Multi-scale: 44.5 AP on COCO val2017, 40.1 M parameters, 173 GMACs an image."""
    return DeformableDetrConfig()


def deformable_detr_single_scale() -> DeformableDetrConfig:
    """39.4 AP, 34.1 M parameters, 78 GMACs."""
    return DeformableDetrConfig(num_feature_levels=1)


def deformable_detr_single_scale_dc5() -> DeformableDetrConfig:
    """41.5 AP, 34.1 M parameters, 128 GMACs. Its checkpoint has the keys of the single scale."""
    return DeformableDetrConfig(num_feature_levels=1, dilation=True)


def deformable_detr_with_box_refine() -> DeformableDetrConfig:
    """46.2 AP, 40.8 M parameters, 173 GMACs."""
    return DeformableDetrConfig(with_box_refine=True)


def deformable_detr_with_box_refine_two_stage() -> DeformableDetrConfig:
    """46.9 AP, 41.2 M parameters, 173 GMACs."""
    return DeformableDetrConfig(with_box_refine=True, two_stage=True)


@dataclass(frozen=True)
class DetrConfig:
    """Every number that shapes the network of DETR. The defaults are the published ResNet-50."""

    precisions: ClassVar = ("fp32", "bf16", "fp16")
    two_stage: ClassVar[bool] = False  # its queries are the same for every image
    backbone: Literal["resnet50", "compact"] = "resnet50"
    dilation: bool = False  # stride 16 instead of 32 in the last stage (DC5)
    d_model: int = 256
    n_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float = 0.1  # while training
    num_queries: int = 100
    resize: ResizeRule = PUBLISHED_RESIZE
    labels: tuple[str, ...] = COCO_LABELS

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or self.d_model % 4:
            raise ValueError(f"d_model={self.d_model} must be a multiple of 4 and of n_heads")

    @property
    def num_classes(self) -> int:
        """The number of classes, without "no object"."""
        return len(self.labels)

    @property
    def kind(self) -> tuple[str, str]:
        """Equal for models that may have each other's weights."""
        return "DETR", self.backbone


SetConfig = DeformableDetrConfig | DetrConfig


@dataclass(frozen=True)
class FasterRcnnConfig:
    """Faster R-CNN + FPN of torchvision, which resizes images itself."""

    precisions: ClassVar = ("fp32",)
    version: Literal[1, 2] = 1
    resize: ResizeRule = AS_DISPLAYED
    labels: tuple[str, ...] = COCO_LABELS

    @property
    def kind(self) -> tuple[str, str]:
        """Equal for models that may have each other's weights."""
        return "Faster R-CNN", str(self.version)


ModelConfig = DeformableDetrConfig | DetrConfig | FasterRcnnConfig


def faster_rcnn() -> FasterRcnnConfig:
    """37.0 AP on COCO val2017, 41.8 M parameters, 134 GMACs."""
    return FasterRcnnConfig()


def faster_rcnn_v2() -> FasterRcnnConfig:
    """46.7 AP, 43.7 M parameters, 280 GMACs."""
    return FasterRcnnConfig(2)


def detr() -> DetrConfig:
    """42.0 AP on COCO val2017, 20.5 AP of small objects, 41.5 M parameters, 86 GMACs."""
    return DetrConfig()


def detr_dc5() -> DetrConfig:
    """43.3 AP, 22.5 AP of small objects, 41.5 M parameters, 187 GMACs."""
    return DetrConfig(dilation=True)


# The classes of the rendered scenes (`SHAPES` in jobs/demo/scenes.py); label 0 is never used.
SHAPE_LABELS: tuple[str, ...] = (
    "", "circle", "ring", "square", "triangle", "star", "cross", "heart", "crescent", "arrow",
    "hourglass",
)  # fmt: skip


def shapes_tiny() -> DeformableDetrConfig:
    """The embedded default: shapes on textured backgrounds, trained by `detr-batch train`."""
    return replace(
        deformable_detr_with_box_refine_two_stage(),
        backbone="compact",
        d_model=128,
        n_heads=8,
        encoder_layers=2,
        decoder_layers=3,
        dim_feedforward=384,
        dropout=0.0,
        num_queries=60,
        resize=ResizeRule(shorter=352, longest=704, multiple=32),
        labels=SHAPE_LABELS,
    )
