"""What the heads of a detector predict, before boxes are chosen and scaled to pixels."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Predictions:
    """One head's answer: logits (B, Q, K), and boxes (B, Q, 4) as (cx, cy, w, h) in [0, 1].

    K is the number of classes; DETR has one more logit, the last one, for "no object".
    """

    pred_logits: Tensor
    pred_boxes: Tensor


@dataclass(frozen=True)
class DetectorOutput(Predictions):
    """The last decoder layer's predictions; while training also those before it.

    `auxiliary` are the earlier decoder layers', first to last; `encoder` the two-stage model's
    proposals (B, S, ...), whose only class is channel 0.
    """

    auxiliary: tuple[Predictions, ...] = ()
    encoder: Predictions | None = None


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int, out: int, depth: int):
        super().__init__()
        widths = [width] * depth + [out]
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out
