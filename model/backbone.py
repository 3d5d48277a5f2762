"""Convolutional trunks that give C3, C4 and C5: ResNet-50 as published, and a compact one.

Both take an optional valid area, so that a padded image can give what it gives alone: before each
convolution that looks sideways the padding is set to zero, which is what that convolution would
have met beyond the border of the unpadded image. (Their input comes padded with zeros.)
"""

from torch import Tensor, nn

from model.batch_norm import FrozenBatchNorm2d
from model.fused_layers import conv_norm_relu, conv_norm_relu_pool
from model.padding import halve


class Bottleneck(nn.Module):
    """ResNet v1.5 block: 1x1, 3x3 (strided or dilated), 1x1, each with a frozen batch norm."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, dilation: int, project: bool):
        super().__init__()
        out = width * self.expansion
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = FrozenBatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = FrozenBatchNorm2d(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), FrozenBatchNorm2d(out))
            if project
            else None
        )

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        y = conv_norm_relu(self.conv1, self.bn1, x, valid=valid)
        y = conv_norm_relu(self.conv2, self.bn2, y)
        shortcut = x if self.downsample is None else self.downsample(x)
        return conv_norm_relu(self.conv3, self.bn3, y, shortcut)


class ResNet50(nn.Module):
    """Attributes are torchvision's (`conv1`, `layer1.0.bn1`, ...), as in every checkpoint.

    With `dilation` the last stage keeps stride 16 and dilates by 2 from its second block on, which
    is torchvision's `replace_stride_with_dilation=[False, False, True]`.
    """

    channels = (512, 1024, 2048)

    def __init__(self, dilation: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm2d(64)
        self.layer1 = self._stage(64, 64, 3)
        self.layer2 = self._stage(256, 128, 4, stride=2)
        self.layer3 = self._stage(512, 256, 6, stride=2)
        self.layer4 = self._stage(1024, 512, 3, stride=1 if dilation else 2, dilated=dilation)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(
        channels: int, width: int, blocks: int, stride: int = 1, dilated: bool = False
    ) -> nn.ModuleList:
        first = Bottleneck(channels, width, stride, 1, project=True)
        out = width * Bottleneck.expansion
        rest = (Bottleneck(out, width, 1, 2 if dilated else 1, False) for _ in range(blocks - 1))
        return nn.ModuleList([first, *rest])

    def forward(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """`x` (B, 3, H, W) -> C3, C4, C5: (B, 512, H/8, W/8), (B, 1024, ...), (B, 2048, ...)."""
        valid = halve(valid)
        x = conv_norm_relu_pool(self.conv1, self.bn1, x, valid)
        valid = halve(valid)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                assert isinstance(block, Bottleneck)
                x = block(x, valid)
                valid = halve(valid, block.stride)
            features.append(x)
        return features[1:]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms that train."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            if stride > 1 or channels != out
            else None
        )

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Outside the valid area `x` is 0, and so is the result."""
        area = halve(valid, self.stride)
        y = conv_norm_relu(self.conv1, self.bn1, x, valid=area)
        shortcut = x if self.downsample is None else self.downsample(x)
        return conv_norm_relu(self.conv2, self.bn2, y, shortcut, area)


class CompactResNet(nn.Module):
    """A ResNet of basic blocks for the embedded model: strides 8, 16 and 32."""

    channels = (64, 128, 160)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        stages = [(32, 32), (32, 64), (64, 128), (128, 160)]
        self.stages = nn.ModuleList(
            nn.ModuleList([BasicBlock(a, b, 2), BasicBlock(b, b, 1)]) for a, b in stages
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        """`x` (B, 3, H, W) -> (B, 64, H/8, W/8), (B, 128, H/16, W/16), (B, 160, H/32, W/32)."""
        valid = halve(valid)
        x = conv_norm_relu(self.conv1, self.bn1, x, valid=valid)
        features = []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                assert isinstance(block, BasicBlock)
                x = block(x, valid)
                valid = halve(valid, block.stride)
            features.append(x)
        return features[1:]


class Backbone(nn.Module):
    """The trunk under the name that checkpoints give it (`backbone.0.body`)."""

    def __init__(self, kind: str, dilation: bool):
        super().__init__()
        self.body: ResNet50 | CompactResNet = (
            ResNet50(dilation) if kind == "resnet50" else CompactResNet()
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> list[Tensor]:
        return self.body(x, valid)
