"""Which of two ways to compute something is faster on each GPU: `ways.json`, as measured.

The table is keyed by compute capability ("9.0"), then by what is computed. `detr-batch bench gpu
--collect` fills it. On a GPU that nobody measured the first way of WAYS is taken.
"""

import json
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("ways.json")
RESIDUAL = "sum and ReLU after a convolution"
BIAS = "bias and ReLU of 3x3 convolutions"
CUDNN, KERNEL = "cudnn", "kernel"  # within the convolution, or by a kernel behind it
POINTWISE = "1x1 convolutions"  # those without a sum
CONVOLUTION, PRODUCT = "convolution", "product"  # by cuDNN and the kernel, or all by cuBLAS
STEM = "stem"
FILTERS, BLOCKS = "7x7", "blocks"  # over pixels, or 4x4 over blocks of 2x2 pixels
CORNERS = "sums of the attention's corners"
FP32, HALF = "fp32", "half"  # half: of the four corners of a sample, where values are 16 bits
NORM = "sums and norms behind products"  # of the encoder
PASS, EPILOGUE = "pass", "epilogue"  # by a kernel behind cuBLAS, or all by one kernel
WAYS = {
    RESIDUAL: (CUDNN, KERNEL),
    BIAS: (KERNEL, CUDNN),
    POINTWISE: (CONVOLUTION, PRODUCT),
    STEM: (FILTERS, BLOCKS),
    CORNERS: (FP32, HALF),
    NORM: (PASS, EPILOGUE),
}

Chosen = dict[str, str]  # what is computed: the way


def read_ways(path: Path = TABLE) -> dict[str, Chosen]:
    """Ways by compute capability. ValueError for one that the code does not have."""
    table: dict[str, Chosen] = json.loads(path.read_text())
    for capability, chosen in table.items():
        for what, way in chosen.items():
            if way not in WAYS.get(what, ()):
                raise ValueError(f"{path}, {capability}: there is no way {way!r} of {what!r}")
    return table


def add_way(capability: str, what: str, way: str, path: Path = TABLE) -> None:
    """Keep what was measured on a GPU of this capability in place of what the table had."""
    table = read_ways(path)
    table[capability] = table.get(capability, {}) | {what: way}
    lines = [f" {json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@cache
def _kept() -> dict[str, Chosen]:
    return read_ways()


def way_of(what: str, capability: str) -> str:
    """How a GPU of this capability is to compute something."""
    return _kept().get(capability, {}).get(what, WAYS[what][0])
