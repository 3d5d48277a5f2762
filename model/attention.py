"""Attention of every query to every key, with the parameters of `nn.MultiheadAttention`.

torch's own forward puts queries before images, and where there are several images its linear layers
then become a small product a query, each with a copy of the weights.
"""

from torch import Tensor, nn
from torch.nn import functional as F


def attend_to_self(
    attention: nn.MultiheadAttention, query: Tensor, value: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Self-attention, whose keys are its queries, without its last product, `out_proj`.

    `query`, `value` and the result are (B, S, C). `mask` (B, 1, 1, S) bool is True for the keys
    that are attended to; None is for all.
    """
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    both = F.linear(query, weight[: 2 * width], bias[: 2 * width])
    values = F.linear(value, weight[2 * width :], bias[2 * width :])
    queries, keys = both.chunk(2, -1)
    return attend(attention, queries, keys, values, mask)


def attend(
    attention: nn.MultiheadAttention,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention of projected `queries` (B, Q, C) to `keys` and `values` (B, S, C) -> (B, Q, C).

    The result is that of `attention` before its last product; `mask` is as in `attend_to_self`.
    """
    q, k, v = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for part in (queries, keys, values)
    )
    dropout = attention.dropout if attention.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, mask, dropout)  # (B, M, Q, D)
    return y.transpose(1, 2).flatten(2)
