"""A detector with encoder and decoder in fp16, and the one that computes what overflows there.

fp16 has 11 bits, but its numbers end at 65,504. bf16 has 8 bits, and the range of fp32.
"""

import copy

import torch

from model.deformable_detr import DeformableDetr
from model.inference import prepare_for_inference, prepare_transformer

FALLBACK_DTYPE = torch.bfloat16


class Fallback:
    """Makes a detector from another one, with encoder and decoder in bf16, when first needed.

    Trunk, pyramid and heads are those of the other. The weights of encoder and decoder are cast
    from fp32, so until then they lie in the host's memory as they are in the checkpoint, with 4
    bytes each; afterwards on the device, with 2 bytes each.
    """

    def __init__(self, net: DeformableDetr):
        """`net` is not prepared yet."""
        net.refuse_if_prepared()
        self._first = net
        self._transformer = copy.deepcopy(net.transformer).cpu()
        self._made: DeformableDetr | None = None

    def __call__(self) -> DeformableDetr:
        """Return the detector, which the first call makes. The other one is prepared by then."""
        if self._made is None:
            with torch.inference_mode(False):
                self._made = self._make()
            del self._transformer
        return self._made

    def _make(self) -> DeformableDetr:
        first = self._first
        with torch.device("meta"):  # no weights are drawn, because all are replaced
            net = DeformableDetr(first.config, first.padding).eval()
        net.backbone, net.input_proj, net.dtype = first.backbone, first.input_proj, first.dtype
        net.fused_pyramid = first.fused_pyramid
        net.class_embed, net.bbox_embed = first.class_embed, first.bbox_embed
        if not first.config.two_stage:
            net.query_embed = first.query_embed
        device = first.transformer.level_embed.device
        # A copy, because memory may run out before it is prepared; then a later call makes another.
        net.transformer = copy.deepcopy(self._transformer).to(device)
        prepare_transformer(net, FALLBACK_DTYPE)
        return net.requires_grad_(False)


def prepare_with_fallback(net: DeformableDetr) -> DeformableDetr:
    """Prepare `net` for inference in place, with the trunk in bf16, and the rest in fp16."""
    net.fallback = Fallback(net)
    return prepare_for_inference(net, torch.float16, trunk_dtype=FALLBACK_DTYPE)
