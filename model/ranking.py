"""The order of scores: largest first and, of equal ones, the one that comes first."""

import torch
from torch import Tensor


def largest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest scores of each image, largest first: (B, N) -> (B, count).

    `scores` are of any floating dtype up to fp32, the result is int64. `Tensor.topk` leaves the
    order of equal scores to chance: it differs between devices, versions and batches. Here the
    lower position comes first. NaN counts as the largest.
    """
    length = scores.shape[1]
    bits = (scores.detach().float() + 0.0).view(torch.int32)  # -0.0 equals 0.0, and becomes it
    # As integers, positive floats are in their order, and negative ones in the reverse of theirs.
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    position = torch.arange(length, device=scores.device)
    keys = order << 32 | (length - 1 - position)  # no two are equal
    return length - 1 - (keys.topk(count, dim=1).values & 0xFFFFFFFF)
