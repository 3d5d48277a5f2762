"""Compile the Triton kernels for GPUs that need not be there, and say what they cost them.

    python -m model.ops.compiled [CAPABILITY ...]

prints registers and spilled bytes a thread for each compute capability, dtype and kernel.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from model.ops import trunk
from model.ops.launches import ANY, read_table
from model.ops.pointwise import (
    BLOCK,
    POOL_WARPS,
    POOLED,
    ROW_WARPS,
    ROWS,
    WARPS,
    add_norm_forward,
    finish_forward,
    finish_pool_forward,
    normalize_forward,
)
from model.ops.triton import msda_forward

CAPABILITIES = (80, 90, 100)
DTYPES = ("fp16", "bf16", "fp32")
Types = Mapping[str, str]  # by argument
Sizes = dict[str, int]
FORMS = {2: "points", 4: "boxes"}  # what is sampled around


@dataclass(frozen=True)
class Cost:
    """What one thread of a compiled kernel takes."""

    registers: int
    spilled: int  # bytes


def compiled(kernel: Any, capability: int, types: Types, sizes: Sizes, warps: int) -> Cost:
    """The cost of a kernel for arguments of these types (of pointers, else int32) and `sizes`.

    `capability` as 90 for 9.0. Pointers and strides are multiples of 16, as torch's are.
    """
    names = kernel.arg_names
    constants = dict.fromkeys(sizes, "constexpr")
    aligned = [i for i, name in enumerate(names) if name.endswith(("_ptr", "_stride"))]
    made = triton.compile(
        ASTSource(
            kernel,
            {name: ({**types, **constants}).get(name, "i32") for name in names},
            {(names.index(name),): size for name, size in sizes.items()},
            {(i,): [["tt.divisibility", 16]] for i in aligned},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )
    with TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(made.asm["ptx"])
        architecture = f"sm_{capability}" + ("a" if capability >= 90 else "")
        command = [get_ptxas(capability).path, "--verbose", f"--gpu-name={architecture}"]
        command += [str(source), "--output-file", str(Path(folder, "kernel.cubin"))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert registers and spilled, said
    return Cost(int(registers[1]), int(spilled[1]))


def attention(capability: int, dtype: str) -> Iterator[tuple[str, Cost]]:
    """The attention of the published multi-scale model, padded, at the launches of this GPU."""
    types = dict.fromkeys(("value_ptr", "offsets_ptr", "logits_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(("reference_ptr", "ratios_ptr", "bias_ptr"), "*fp32")
    types |= {"levels_ptr": "*i32", "padding_ptr": "*u8"}
    sizes: Sizes = {"HEADS": 8, "CHANNELS": 32, "CHANNELS_2": 32, "PADDED": True, "BIASED": True}
    sizes |= {"LEVELS": 4, "POINTS": 4, "POINTS_2": 4, "SAMPLES_2": 16}
    table = read_table()
    launches = table.get(f"{capability // 10}.{capability % 10}", table[ANY])
    for name, launch in launches.items():
        for reference, form in FORMS.items():
            cut = sizes | {"REFERENCE": reference, "BLOCK": launch.block}
            cost = compiled(msda_forward, capability, types, cut, launch.warps)
            yield f"{form}, {name} (block {launch.block}, {launch.warps} warps)", cost


def around(capability: int, dtype: str) -> Iterator[tuple[str, Cost]]:
    """What surrounds the products of the published models, padded."""
    own = dict.fromkeys(("x_ptr", "residual_ptr", "bias_ptr", "weight_ptr"), f"*{dtype}")
    own |= dict.fromkeys(("position_ptr", "out_ptr", "placed_ptr"), f"*{dtype}")
    own |= {"valid_ptr": "*i64", "pixels_ptr": "*u8", "eps": "fp32"}
    own |= dict.fromkeys(("mean_ptr", "deviation_ptr"), "*fp32")
    channels, masked = {"CHANNELS": 256}, {"MASKED": True}
    wide = masked | {"BLOCK": BLOCK}
    of_blocks = {"BEFORE": trunk.BEFORE, "DEPTH": trunk.DEPTH, "BLOCK": trunk.CELLS}
    for kernel, sizes, warps in (
        (finish_forward, channels | wide | {"RESIDUAL": True, "RELU": True}, WARPS),
        (finish_pool_forward, {"CHANNELS": 64, "BLOCK": POOLED} | masked, POOL_WARPS),
        (add_norm_forward, channels | {"CHANNELS_2": 256, "PLACED": True, "ROWS": ROWS}, ROW_WARPS),
        (normalize_forward, wide, WARPS),
        (trunk.zero_padding_forward, channels | {"BLOCK": trunk.ZEROS}, trunk.ZERO_WARPS),
        (trunk.normalize_blocks_forward, masked | of_blocks, trunk.WARPS),
    ):
        types = {name: kind for name, kind in own.items() if name in kernel.arg_names}
        yield kernel.__name__, compiled(kernel, capability, types, sizes, warps)


def main() -> None:
    for capability in map(int, sys.argv[1:]) if sys.argv[1:] else CAPABILITIES:
        for dtype in DTYPES:
            for name, cost in chain(attention(capability, dtype), around(capability, dtype)):
                print(
                    f"sm_{capability} {dtype} {name}: {cost.registers} registers, "
                    f"{cost.spilled} bytes spilled"
                )


if __name__ == "__main__":
    main()
