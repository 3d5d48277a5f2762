"""DETR: one level of features, and a transformer in which everything attends to everything."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import attend, attend_to_self
from model.backbone import Backbone
from model.class_loss import CrossEntropy
from model.config import DetrConfig
from model.detector import Detections
from model.fused_layers import (
    FusedLinear,
    Linear,
    add_linear_norm,
    add_linear_norm_place,
    linear_relu,
)
from model.padding import valid_at, valid_mask
from model.position_encoding import sine_position_encoding
from model.postprocess import best_queries
from model.predictions import MLP, DetectorOutput, Predictions
from model.set_detector import Padding, SetDetector
from model.stem import canvas_of

CELLS_OF_TABLES = 64  # tables of positions have a multiple of so many rows: 2 MB each in bf16
CELL_END = 1.0  # the place of a cell whose position DETR encodes, see `sine_position_encoding`


class DetrEncoderLayer(nn.Module):
    def __init__(self, config: DetrConfig):
        super().__init__()
        d = config.d_model
        self.dropout = config.dropout
        self.self_attn = nn.MultiheadAttention(d, config.n_heads, config.dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(d)
        self.linear1: Linear = nn.Linear(d, config.dim_feedforward)
        self.linear2: Linear = nn.Linear(config.dim_feedforward, d)
        self.norm2 = nn.LayerNorm(d)

    def forward(
        self, x: Tensor, placed: Tensor, position: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`x` and `placed`, which is `x` plus `position`, of this layer -> those of the next.

        All are (B, S, C), `position` also (1, S, C). `mask` is as in `attend`.
        """
        y = attend_to_self(self.self_attn, placed, x, mask)
        x = add_linear_norm(self.self_attn.out_proj, self.norm1, y, x, self.dropout)
        y = F.dropout(linear_relu(self.linear1, x), self.dropout, self.training)
        return add_linear_norm_place(self.linear2, self.norm2, y, x, position, self.dropout)


class DetrEncoder(nn.Module):
    def __init__(self, config: DetrConfig):
        super().__init__()
        self.layers = nn.ModuleList(DetrEncoderLayer(config) for _ in range(config.encoder_layers))


class DetrDecoderLayer(nn.Module):
    def __init__(self, config: DetrConfig):
        super().__init__()
        d = config.d_model
        self.dropout = config.dropout
        self.self_attn = nn.MultiheadAttention(d, config.n_heads, config.dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(d)
        self.multihead_attn = nn.MultiheadAttention(
            d, config.n_heads, config.dropout, batch_first=True
        )
        self.norm2 = nn.LayerNorm(d)
        self.linear1: Linear = nn.Linear(d, config.dim_feedforward)
        self.linear2: Linear = nn.Linear(config.dim_feedforward, d)
        self.norm3 = nn.LayerNorm(d)

    def attend_to_queries(self, x: Tensor, position: Tensor) -> Tensor:
        """Self-attention of `x` (B, Q, C) at `position` (B or 1, Q, C) -> (B, Q, C)."""
        query = x + position
        y = attend_to_self(self.self_attn, query, x)
        return add_linear_norm(self.self_attn.out_proj, self.norm1, y, x, self.dropout)

    def attend_to_memory(
        self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of `x` (B, Q, C) to projected `keys` and `values` (B, S, C) -> (B, Q, C)."""
        attention, width = self.multihead_attn, self.multihead_attn.embed_dim
        weight, bias = attention.in_proj_weight[:width], attention.in_proj_bias[:width]
        queries = F.linear(x + position, weight, bias)
        y = attend(attention, queries, keys, values, mask)
        x = add_linear_norm(attention.out_proj, self.norm2, y, x, self.dropout)
        y = F.dropout(linear_relu(self.linear1, x), self.dropout, self.training)
        return add_linear_norm(self.linear2, self.norm3, y, x, self.dropout)


class DetrDecoder(nn.Module):
    def __init__(self, config: DetrConfig):
        super().__init__()
        self.layers = nn.ModuleList(DetrDecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.keys_of_all: FusedLinear | None = None  # where prepared for inference
        self.values_of_all: FusedLinear | None = None

    def keys_and_values(self, memory: Tensor, placed: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What each layer attends to, first to last, of `memory` and `placed` (B, S, C)."""
        if self.keys_of_all is not None and self.values_of_all is not None:
            count = len(self.layers)
            keys, values = self.keys_of_all(placed), self.values_of_all(memory)
            yield from zip(keys.chunk(count, -1), values.chunk(count, -1), strict=True)
            return
        for layer in self.layers:
            assert isinstance(layer, DetrDecoderLayer)
            _, key, value = projections(layer.multihead_attn)
            yield F.linear(placed, *key), F.linear(memory, *value)


def projections(attention: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of an attention's queries, keys and values."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    return list(zip(weights, biases, strict=True))


class DetrTransformer(nn.Module):
    """Everything that checkpoints keep under `transformer.`."""

    def __init__(self, config: DetrConfig):
        super().__init__()
        self.encoder = DetrEncoder(config)
        self.decoder = DetrDecoder(config)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


class Detr(SetDetector):
    """DETR (Carion et al. 2020). Attribute names are the published checkpoints' keys."""

    config: DetrConfig
    class_loss = CrossEntropy()

    def __init__(self, config: DetrConfig, padding: Padding = "published"):
        super().__init__(padding)
        self.config = config
        self.first_queries: Tensor | None = None  # (1, Q, C) after the first self-attention
        trunk, d = Backbone(config.backbone, config.dilation), config.d_model
        self.backbone = nn.ModuleList([trunk])
        self.input_proj = nn.Conv2d(trunk.body.channels[-1], d, 1)
        self.transformer = DetrTransformer(config)
        self.query_embed = nn.Embedding(config.num_queries, d)
        self.class_embed = nn.Linear(d, config.num_classes + 1)
        self.bbox_embed = MLP(d, 4, 3)

    def replace_heads(self, labels: tuple[str, ...]) -> None:
        self.config = replace(self.config, labels=labels)
        self.class_embed = nn.Linear(self.config.d_model, self.config.num_classes + 1)

    def choose(self, output: DetectorOutput, sizes: Tensor, top: int) -> Detections:
        return best_queries(output, sizes, top)

    def predict(self, pixel_values: Tensor, valid: Tensor | None) -> DetectorOutput:
        with self.autocast(pixel_values.device):
            memory, position, mask = self._features(pixel_values, valid)
            placed = memory + position
            for layer in self.transformer.encoder.layers:
                memory, placed = layer(memory, placed, position, mask)
        return self._decode(memory, placed, mask)

    def _features(
        self, pixel_values: Tensor, valid: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features (B, S, C), their positions (B or 1, S, C), and the mask of `attend`."""
        invariant = valid is None or self.padding == "invariant"
        x = pixel_values.to(self.dtype, memory_format=torch.channels_last)
        x = self.backbone[0](x, valid if invariant else None)[-1]
        memory = self.input_proj(x).flatten(2).transpose(1, 2).to(self.transformer_dtype)
        if valid is None:
            whole = x.new_ones((1, *x.shape[2:]), dtype=torch.bool)
            if not self.prepared:
                return memory, self._position(whole), None
            return memory, self._kept_position(x.shape[2:], lambda: self._position(whole)), None
        if self.padding == "published":
            pixels = valid_mask(valid, pixel_values)
            cells = F.interpolate(pixels[None].float(), size=x.shape[-2:])[0].bool()
            return memory, self._position(cells), cells.flatten(1)[:, None, None]
        area = valid_at(valid, canvas_of(pixel_values), x.shape[2:])
        cells = valid_mask(area, x)
        position = self._looked_up(area, cells) if self.prepared else self._position(cells)
        return memory, position, cells.flatten(1)[:, None, None]

    def _looked_up(self, area: Tensor, cells: Tensor) -> Tensor:
        """As `_position` of the cells within the `area` (B, 2) of each image, from kept tables.

        The host does not know the area, which is data of the device; so it is an index there. What
        is beyond the area differs, and nothing reads it.
        """
        height, width = cells.shape[1:]
        rows, columns = self._tables(max(height, width), area.device)
        y = rows[area[:, 0] - 1, :height]  # (B, H, C / 2)
        x = columns[area[:, 1] - 1, :width]
        sides = torch.broadcast_tensors(y[:, :, None], x[:, None])
        return torch.cat(sides, -1).flatten(1, 2)

    def _tables(self, most: int, device: torch.device) -> Tensor:
        """Encodings of rows and of columns, each (N, N, C / 2): of `n` valid ones, and of a place.

        N is at least `most`, and the same for many canvases. Entry n - 1 is of `n` valid ones.
        """
        size = -(-most // CELLS_OF_TABLES) * CELLS_OF_TABLES

        def make() -> Tensor:
            valid = torch.ones(size, size, dtype=torch.bool, device=device).tril()
            y, _ = self._position(valid[:, :, None]).chunk(2, -1)
            _, x = self._position(valid[:, None]).chunk(2, -1)
            return torch.stack((y, x))

        return self._kept_position(size, make)

    def _position(self, cells: Tensor) -> Tensor:
        """Positions (B, S, C) of the cells (B, H, W) bool."""
        position = sine_position_encoding(cells, self.config.d_model, CELL_END)
        return position.flatten(2).transpose(1, 2).to(self.transformer_dtype)

    def _decode(self, memory: Tensor, placed: Tensor, mask: Tensor | None) -> DetectorOutput:
        """Queries through the decoder; predictions of the last layer, or of all while training."""
        decoder, batch = self.transformer.decoder, len(memory)
        position = self.query_embed.weight.to(self.transformer_dtype)[None]
        x = torch.zeros_like(position).expand(batch, -1, -1)
        predictions: list[Predictions] = []
        with self.autocast(memory.device):
            pairs = list(decoder.keys_and_values(memory, placed))
            for index, (layer, pair) in enumerate(zip(decoder.layers, pairs, strict=True)):
                assert isinstance(layer, DetrDecoderLayer)
                if index == 0 and self.first_queries is not None:
                    x = self.first_queries.expand(batch, -1, -1)
                else:
                    x = layer.attend_to_queries(x, position)
                x = layer.attend_to_memory(x, position, *pair, mask)
                if self.training or index == len(decoder.layers) - 1:
                    predictions.append(self._predict(decoder.norm(x)))
        last = predictions.pop()
        return DetectorOutput(last.pred_logits, last.pred_boxes, tuple(predictions))

    def _predict(self, x: Tensor) -> Predictions:
        """The heads' answer to `x` (B, Q, C), in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            return Predictions(self.class_embed(x), self.bbox_embed(x).sigmoid())
