"""Training: how the classes of queries count, in the loss and in the cost of a match."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class ClassLoss(Protocol):
    """The part of the loss that is about classes."""

    @property
    def weight(self) -> float:
        """The weight of the loss, and of the cost."""

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What it costs that queries answer for objects: (Q, K) and (N,) -> (Q, N)."""

    def loss(self, logits: Tensor, image: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        """The loss of all queries, a number, unweighted.

        `logits` are (B, Q, K). `image`, `query` and `labels` (N,) say which queries answer for an
        object, and its class; all others answer for none.
        """


@dataclass(frozen=True)
class FocalLoss:
    """Of Deformable DETR: every class is a question of its own.

    Source: `SetCriterion` and `HungarianMatcher` of the original. With `objectness`, a query that
    answers for an object is to say class 0 beside its own.
    """

    weight: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0
    objectness: bool = False

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        p = logits.float().sigmoid()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        return (positive - negative)[:, labels]

    def loss(self, logits: Tensor, image: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        from torchvision.ops import sigmoid_focal_loss  # its import takes as long as torch's

        wanted = torch.zeros_like(logits, dtype=torch.float32)
        wanted[image, query, labels] = 1.0
        if self.objectness:
            wanted[image, query, 0] = 1.0
        loss = sigmoid_focal_loss(logits.float(), wanted, self.alpha, self.gamma, reduction="sum")
        return loss / max(len(labels), 1)


@dataclass(frozen=True)
class CrossEntropy:
    """Of DETR: a query has one class, or the last one, "no object", which counts less.

    Source: `SetCriterion` and `HungarianMatcher` of the original.
    """

    weight: float = 1.0
    no_object: float = 0.1

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        return -logits.float().softmax(-1)[:, labels]

    def loss(self, logits: Tensor, image: Tensor, query: Tensor, labels: Tensor) -> Tensor:
        last = logits.shape[-1] - 1
        wanted = torch.full(logits.shape[:2], last, device=logits.device)
        wanted[image, query] = labels
        weights = torch.ones(last + 1, device=logits.device)
        weights[last] = self.no_object
        return F.cross_entropy(logits.float().transpose(1, 2), wanted, weights)
