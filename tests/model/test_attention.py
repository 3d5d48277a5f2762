"""The decoder's self-attention equals that of torch's module with the same parameters."""

import pytest
import torch
from torch import nn

from model.attention import attend_to_self


@pytest.mark.parametrize("batch", [1, 3])
def test_self_attention_equals_that_of_the_module(batch: int, generator: torch.Generator) -> None:
    attention = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    for parameter in attention.parameters():
        parameter.data.normal_(generator=generator)
    query, value = (torch.randn(batch, 50, 64, generator=generator) for _ in range(2))
    with torch.inference_mode():
        expected, _ = attention(query, query, value, need_weights=False)
        found = attention.out_proj(attend_to_self(attention, query, value))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
