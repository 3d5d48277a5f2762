"""The whole detector: trunk, pyramid, transformer, heads."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbone import Backbone
from model.class_loss import FocalLoss
from model.config import DeformableDetrConfig
from model.detector import Detections
from model.feature_levels import FeatureLevels, cell_centres
from model.padding import group_norm_of_valid, valid_at, valid_mask, zero_padding
from model.position_encoding import sine_position_encoding
from model.postprocess import best_pairs
from model.predictions import MLP, DetectorOutput, Predictions
from model.ranking import largest
from model.set_detector import Padding, SetDetector
from model.stem import canvas_of
from model.transformer import DecoderLayer, Transformer, inverse_sigmoid, propose


class DeformableDetr(SetDetector):
    """Deformable DETR (Zhu et al. 2020). Attribute names are the published checkpoints' keys."""

    config: DeformableDetrConfig
    fallback: "Callable[[], DeformableDetr] | None"
    class_loss = FocalLoss()

    def __init__(self, config: DeformableDetrConfig, padding: Padding = "published"):
        super().__init__(padding)
        self.config = config
        self.first_queries: Tensor | None = None  # (1, Q, C) after the first self-attention
        self.fused_pyramid: nn.Module | None = None  # on GPUs
        d = config.d_model
        trunk = Backbone(config.backbone, config.dilation)
        self.backbone = nn.ModuleList([trunk])
        self.input_proj = nn.ModuleList(self._input_proj(trunk.body.channels, config))
        self.transformer = Transformer(config)
        if not config.two_stage:
            self.query_embed = nn.Embedding(config.num_queries, 2 * d)
        self._build_heads()

    def _build_heads(self) -> None:
        """Fresh heads: one a layer with refinement, else one known under each layer's name."""
        config = self.config
        count = config.decoder_layers + config.two_stage
        class_head = nn.Linear(config.d_model, config.num_classes)
        nn.init.constant_(class_head.bias, -math.log((1 - 0.01) / 0.01))  # prior of 1 %
        box_head = MLP(config.d_model, 4, 3)
        final = box_head.layers[-1]
        assert isinstance(final, nn.Linear)
        nn.init.zeros_(final.weight)
        nn.init.zeros_(final.bias)
        if not config.two_stage:  # boxes start small; proposals have a size of their own
            nn.init.constant_(final.bias[2:], -2.0)
        if not config.with_box_refine:
            self.class_embed = nn.ModuleList([class_head] * count)
            self.bbox_embed = nn.ModuleList([box_head] * count)
            return
        self.class_embed = nn.ModuleList(copy.deepcopy(class_head) for _ in range(count))
        self.bbox_embed = nn.ModuleList(copy.deepcopy(box_head) for _ in range(count))
        for head in self.bbox_embed[1:]:  # later layers start from the box before them
            nn.init.zeros_(head.get_parameter("layers.2.bias"))

    def replace_heads(self, labels: tuple[str, ...]) -> None:
        """Other classes: class heads start anew, boxes keep what they know."""
        boxes = self.bbox_embed
        self.config = replace(self.config, labels=labels)
        self._build_heads()
        self.bbox_embed = boxes

    @staticmethod
    def _input_proj(channels: Sequence[int], config: DeformableDetrConfig) -> list[nn.Sequential]:
        d, levels = config.d_model, config.num_feature_levels
        used = list(channels) if levels > 1 else [channels[-1]]
        convolutions = [nn.Conv2d(c, d, 1) for c in used]
        convolutions += [
            nn.Conv2d(channels[-1] if i == 0 else d, d, 3, 2, 1) for i in range(levels - len(used))
        ]
        for conv in convolutions:
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return [nn.Sequential(conv, nn.GroupNorm(32, d)) for conv in convolutions]

    @property
    def takes_blocks(self) -> bool:
        return super().takes_blocks and self.fused_pyramid is not None

    def predict(self, pixel_values: Tensor, valid: Tensor | None) -> DetectorOutput:
        with self.autocast(pixel_values.device):
            levels = self.pyramid(pixel_values, valid)
            encoded = self.transformer.encoder(levels)
        return self.decode(levels, encoded)

    def choose(self, output: DetectorOutput, sizes: Tensor, top: int) -> Detections:
        return best_pairs(output, sizes, top)

    def pyramid(self, pixel_values: Tensor, valid: Tensor | None) -> FeatureLevels:
        """Features of all levels as one sequence, with positions, valid sizes and valid ratios."""
        invariant = valid is None or self.padding == "invariant"
        pixel_values = pixel_values.to(self.dtype, memory_format=torch.channels_last)
        features = self.backbone[0](pixel_values, valid if invariant else None)
        features = features if self.config.num_feature_levels > 1 else features[-1:]
        size = canvas_of(pixel_values)
        if self.fused_pyramid is not None and invariant:
            fused: FeatureLevels = self.fused_pyramid(features, size, valid, self.transformer_dtype)
            return fused
        maps, masks = self._project(features, pixel_values, valid)
        ratios = torch.stack(
            [
                torch.stack((m[:, 0].float().mean(1), m[:, :, 0].float().mean(1)), dim=1)
                for m in masks
            ],
            dim=1,
        )
        sizes = [torch.stack((m[:, :, 0].sum(1), m[:, 0].sum(1)), dim=1) for m in masks]
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        memory = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        position = self._position(masks, valid is not None)
        return FeatureLevels(
            shapes=shapes,
            memory=memory,
            position=position,
            placed=memory + position,
            centres=cell_centres(shapes, ratios),
            valid_sizes=None if valid is None else torch.stack(sizes, 1),
            valid_ratios=ratios,
        )

    def _position(self, masks: list[Tensor], padded: bool) -> Tensor:
        """Sine encoding plus level embedding of all levels: (B, S, C), or (1, S, C) unpadded.

        Of images without padding it depends on the shape alone, and is kept for the next.
        """
        if padded or not self.prepared:
            return self._positions_of(masks if padded else [mask[:1] for mask in masks])
        shapes = tuple(mask.shape[1:] for mask in masks)
        return self._kept_position(shapes, lambda: self._positions_of([m[:1] for m in masks]))

    def _positions_of(self, masks: list[Tensor]) -> Tensor:
        levels = [
            sine_position_encoding(mask, self.config.d_model).flatten(2).transpose(1, 2)
            + self.transformer.level_embed[level]
            for level, mask in enumerate(masks)
        ]
        return torch.cat(levels, 1).to(self.transformer_dtype)

    def _project(
        self, features: list[Tensor], pixel_values: Tensor, valid: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Each level through its convolution and GroupNorm, beside its mask (B, h, w)."""
        maps: list[Tensor] = []
        masks: list[Tensor] = []
        size = pixel_values.shape[2:]
        if valid is None:
            pixel_mask = pixel_values.new_ones(pixel_values[:, 0].shape, dtype=torch.bool)
        else:
            pixel_mask = valid_mask(valid, pixel_values)
        for level, projection in enumerate(self.input_proj):
            assert isinstance(projection, nn.Sequential)
            conv, norm = projection
            assert isinstance(norm, nn.GroupNorm)
            extra = level - len(features)  # the first extra level looks at raw C5
            last = maps[-1].to(self.dtype) if extra > 0 else features[-1]
            source = features[level] if extra < 0 else last
            if valid is None or self.padding == "published":
                x = self._group_norm(conv(source), norm)
                resized = F.interpolate(pixel_mask[None].float(), size=x.shape[-2:])[0]
                masks.append(resized.bool())
            else:
                area = valid_at(valid, size, source.shape[2:])
                x = conv(zero_padding(source, area) if extra >= 0 else source)
                area = valid_at(valid, size, x.shape[2:])
                x = group_norm_of_valid(x, norm, area).to(self.transformer_dtype)
                masks.append(valid_mask(area, x))
            maps.append(x)
        return maps, masks

    def _group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        """GroupNorm of `x` (B, C, H, W), which is computed in fp32 between two other dtypes."""
        if not self.prepared or x.dtype == norm.weight.dtype == self.transformer_dtype:
            y: Tensor = norm(x)
            return y
        weight, bias = norm.weight.float(), norm.bias.float()
        y = F.group_norm(x.float(), norm.num_groups, weight, bias, norm.eps)
        return y.to(self.transformer_dtype)

    def decode(self, levels: FeatureLevels, encoded: Tensor) -> DetectorOutput:
        """Queries through the decoder; predictions of the last layer, or of all while training."""
        t, batch = self.transformer, len(encoded)
        proposals = None
        if self.config.two_stage:
            proposals, reference = self._propose(levels, encoded.float())
            position, x = t.queries_of(reference)
        else:
            position, x = self.query_embed.weight.chunk(2, dim=1)
            position = position[None].expand(batch, -1, -1)
            x = x[None].expand(batch, -1, -1)
            reference = t.reference_points(position).sigmoid()
        values = t.decoder.values(encoded.to(self.transformer_dtype))
        place = position.to(self.transformer_dtype)
        predictions: list[Predictions] = []
        count = self.config.decoder_layers
        for index, layer in enumerate(t.decoder.layers):
            assert isinstance(layer, DecoderLayer)
            with self.autocast(x.device):
                if index == 0 and self.first_queries is not None:
                    x = self.first_queries.expand(batch, -1, -1)
                else:
                    x = layer.attend_to_queries(x.to(self.transformer_dtype), place)
                x = layer.attend_to_memory(x, place, reference, next(values), levels).float()
            wanted = self.training or index == count - 1
            if not (wanted or self.config.with_box_refine):
                continue
            boxes = self._boxes(index, x, reference)
            if wanted:
                predictions.append(Predictions(self.class_embed[index](x), boxes))
            if self.config.with_box_refine:
                reference = boxes.detach()
        last = predictions.pop()
        return DetectorOutput(last.pred_logits, last.pred_boxes, tuple(predictions), proposals)

    def _boxes(self, head: int, x: Tensor, reference: Tensor) -> Tensor:
        """Boxes (B, Q, 4) around reference points (B, Q, 2) or reference boxes (B, Q, 4)."""
        known = reference.shape[-1]
        logits = self.bbox_embed[head](x)
        shifted = logits[..., :known] + inverse_sigmoid(reference)
        return torch.cat((shifted, logits[..., known:]), dim=-1).sigmoid()

    def _propose(self, levels: FeatureLevels, encoded: Tensor) -> tuple[Predictions | None, Tensor]:
        """All proposals (while training), and the best of them as reference boxes (B, Q, 4)."""
        t = self.transformer
        usable, anchors = propose(levels, encoded)
        usable = t.enc_output_norm(t.enc_output(usable))
        class_head, box_head = self.class_embed[-1], self.bbox_embed[-1]
        assert isinstance(class_head, nn.Linear)
        everything = None
        if self.training:
            everything = Predictions(class_head(usable), (box_head(usable) + anchors).sigmoid())
            rank = everything.pred_logits[..., 0]
        else:  # of the class head, one output ranks the cells; boxes are needed of the best alone
            rank = F.linear(usable, class_head.weight[:1], class_head.bias[:1])[..., 0]
        if self.padding == "invariant" and levels.padding is not None:
            rank = rank.masked_fill(levels.padding, float("-inf"))
        best = largest(rank, min(self.config.num_queries, rank.shape[1]))[..., None]
        if everything is not None:
            boxes = everything.pred_boxes.gather(1, best.expand(-1, -1, 4))
            return everything, boxes.detach()
        chosen = usable.gather(1, best.expand(-1, -1, usable.shape[2]))
        anchors = anchors.gather(1, best.expand(-1, -1, 4))
        return None, (box_head(chosen) + anchors).sigmoid()
