"""JPEGs that a detector decodes on its own device, by torchvision: a GPU does that by nvJPEG."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.detector import Size

TURNED = 5  # the EXIF orientation from which on height and width are exchanged
# What is to be mirrored, by EXIF orientation, once height and width are exchanged: 0 the rows, 1
# the columns.
MIRRORED = {1: (), 2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}


class Refused(RuntimeError):
    """The decoder of the device does not decode a JPEG, or not to the image of its header."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG of which a process without secrets has read the header."""

    encoded: Tensor  # (bytes,) uint8, on the host
    displayed: Size  # its size by its header, upright
    orientation: int  # of EXIF, 1 to 8, which is still to be undone


def decode(jpeg: Jpeg, device: torch.device) -> Tensor:
    """The pixels of an image, upright: (h, w, 3) uint8 on the device, of any strides.

    Each image is decoded alone, so that its pixels depend on no other image. Raises Refused.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second, and few decode so

    if device.type == "cuda":
        # The decoder writes on a stream of its own, and does not wait for the last use of the
        # memory that torch gives it.
        torch.cuda.current_stream(device).synchronize()
    try:
        planes = decode_jpeg(jpeg.encoded, ImageReadMode.UNCHANGED, device)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        raise Refused((str(error).splitlines() or [""])[0]) from error
    image = planes.permute(1, 2, 0)
    if jpeg.orientation >= TURNED:
        image = image.transpose(0, 1)
    if tuple(image.shape[:2]) != jpeg.displayed or image.shape[2] not in (1, 3):
        raise Refused(f"it decodes to {tuple(image.shape)}, and its header says {jpeg.displayed}")
    if mirrored := MIRRORED[jpeg.orientation]:
        image = image.flip(mirrored)
    return image.expand(-1, -1, 3)


def check_decoder(device: torch.device) -> None:
    """Decode a small image. Raises Refused if this torchvision has no decoder for the device."""
    from torchvision.io import encode_jpeg

    try:
        encoded = encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))
    except RuntimeError as error:  # it has no operations on images at all
        raise Refused((str(error).splitlines() or [""])[0]) from error
    decode(Jpeg(encoded, (16, 16), 1), device)
