"""Compile the Triton kernels for GPUs that need not be there, and say what they cost them.

    python -m model.ops.compiled [CAPABILITY ...]

prints instructions a warp, and registers and spilled bytes a thread, for each compute capability,
dtype and kernel.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from model.ops import int8, linear_norm, trunk
from model.ops.launches import ANY, FEW, MANY, NORMS, Launches, launch_name, read_table
from model.ops.narrow import GROUP
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
from model.ops.pyramid import (
    CELLS,
    CHUNK,
    COMBINE_WARPS,
    LINE_WARPS,
    LINES,
    PLACE_WARPS,
    PLACED,
    combine_forward,
    place_forward,
    position_forward,
    statistics_forward,
)
from model.ops.pyramid import WARPS as CELL_WARPS
from model.ops.resample import BLOCK as PIXELS
from model.ops.resample import WARPS as PIXEL_WARPS
from model.ops.resample import resample_forward, resize_forward
from model.ops.triton import msda_forward
from model.ops.ways import CORNERS, FP32, HALF, WAYS

CAPABILITIES = (80, 90, 100)
DTYPES = ("fp16", "bf16", "fp32")
Types = Mapping[str, str]  # by argument
Sizes = dict[str, int]
FORMS = {2: "points", 4: "boxes"}  # what is sampled around
TENSOR_MEMORY = 100  # capability from which kernels wait for their products in loops
LABEL = re.compile(r"(\.L_\S+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.+?);")  # behind its address
BRANCH = re.compile(r"\bBRA\b.*?`\((\.L_\S+?)\)")


@dataclass(frozen=True)
class Cost:
    """What a compiled kernel takes of a GPU."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread
    # That a warp executes, where each loop is one over levels or inputs. From TENSOR_MEMORY on each
    # loop counts once, since some of them wait.
    instructions: int

    def __str__(self) -> str:
        used = f"{self.registers} registers, {self.spilled} bytes spilled"
        return f"{self.instructions} instructions, {used}"


def compiled(
    kernel: Any,
    capability: int,
    types: Types,
    sizes: Sizes,
    warps: int,
    stages: int = 3,
    limit: int | None = None,
) -> Cost:
    """The cost of a kernel for arguments of these types (of pointers, else int32) and `sizes`.

    `capability` as 90 for 9.0. Pointers and strides are multiples of 16, as torch's are, and so are
    numbers of channels-last maps. `limit` is of the registers of a thread.
    """
    names = kernel.arg_names
    constants = dict.fromkeys(sizes, "constexpr")
    aligned = [
        i
        for i, name in enumerate(names)
        if name.endswith(("_ptr", "_stride"))
        or (name == "count" and not kernel.params[i].do_not_specialize)
    ]
    made = triton.compile(
        ASTSource(
            kernel,
            {name: ({**types, **constants}).get(name, "i32") for name in names},
            {(names.index(name),): size for name, size in sizes.items()},
            {(i,): [["tt.divisibility", 16]] for i in aligned},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": warps,
            "num_stages": stages,
            "maxnreg": limit,
            "enable_fp_fusion": True,
        },
    )
    with TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(made.asm["ptx"])
        architecture = f"sm_{capability}" + ("a" if capability >= 90 else "")
        command = [get_ptxas(capability).path, "--verbose", f"--gpu-name={architecture}"]
        binary = str(Path(folder, "kernel.cubin"))
        command += [str(source), "--output-file", binary]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        command = [triton.knobs.nvidia.nvdisasm.path, "--print-code", binary]
        code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert registers and spilled, said
    executed = executed_instructions(code, rounds_of(sizes) if capability < TENSOR_MEMORY else 1)
    return Cost(int(registers[1]), int(spilled[1]), executed)


def rounds_of(sizes: Sizes) -> int:
    """How often a loop of a kernel runs."""
    if "INPUTS" in sizes:
        return sizes["INPUTS"] // sizes["DEPTH"]
    return sizes["WIDTH"] // sizes["GROUP"] if "GROUPED" in sizes else sizes.get("LEVELS", 1)


def executed_instructions(code: str, rounds: int) -> int:
    """Count the instructions of nvdisasm's `code`, those within a loop `rounds` times.

    A loop is what lies between a label and a branch back to it; the endless one at the end of each
    kernel, and the NOPs behind it, are no work.
    """
    count, labels = 0, {}
    for line in code.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = count
        instruction = INSTRUCTION.search(line)
        if instruction is None or instruction[1].startswith("NOP"):
            continue
        count += 1
        target = BRANCH.search(instruction[1])
        if target and target[1] in labels:
            count += (rounds - 1) * (count - labels[target[1]])
    return count


def launches_of(capability: int) -> Launches:
    """The launches of this GPU."""
    table = read_table()
    return table[ANY] | table.get(f"{capability // 10}.{capability % 10}", {})


def attention(capability: int, dtype: str) -> Iterator[tuple[str, Cost]]:
    """The attention of the published multi-scale model, padded, at the launches of this GPU."""
    types = dict.fromkeys(("value_ptr", "offsets_ptr", "logits_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(("reference_ptr", "ratios_ptr", "bias_ptr"), "*fp32")
    types |= {"levels_ptr": "*i32", "valid_ptr": "*i64"}
    sizes: Sizes = {"HEADS": 8, "CHANNELS": 32, "CHANNELS_2": 32, "PADDED": True, "BIASED": True}
    sizes |= {"LEVELS": 4, "POINTS": 4, "POINTS_2": 4, "SAMPLES_2": 16}
    launches = launches_of(capability)
    ways = [FP32] if dtype == "fp32" else WAYS[CORNERS]
    for case, corners, reference in product((FEW, MANY), ways, FORMS):
        name = launch_name(case, corners)
        launch = launches[name]
        cut = sizes | {"REFERENCE": reference, "BLOCK": launch.block}
        cut |= {"HALF_CORNERS": corners == HALF}
        cost = compiled(msda_forward, capability, types, cut, launch.warps)
        yield f"{FORMS[reference]}, {name} (block {launch.block}, {launch.warps} warps)", cost


def around(capability: int, dtype: str) -> Iterator[tuple[str, Cost]]:
    """What surrounds the products of the published models, padded."""
    own = dict.fromkeys(("x_ptr", "residual_ptr", "bias_ptr", "weight_ptr"), f"*{dtype}")
    own |= dict.fromkeys(("out_ptr", "placed_ptr"), f"*{dtype}")
    own |= {"table_ptr": "*fp32", "entries_ptr": "*i32"}
    own |= {"valid_ptr": "*i64", "pixels_ptr": "*u8", "eps": "fp32"}
    own |= {"narrow_ptr": "*i8", "scale_ptr": "*fp32"}
    own |= dict.fromkeys(("mean_ptr", "deviation_ptr"), "*fp32")
    channels, masked = {"CHANNELS": 256}, {"MASKED": True}
    wide, norm = masked | {"BLOCK": BLOCK}, {"CHANNELS_2": 256, "ROWS": ROWS}
    of_blocks = {"BEFORE": trunk.BEFORE, "DEPTH": trunk.DEPTH, "BLOCK": trunk.CELLS}
    for kernel, sizes, warps in (
        (finish_forward, channels | wide | {"RESIDUAL": True, "RELU": True}, WARPS),
        (finish_pool_forward, {"CHANNELS": 64, "BLOCK": POOLED} | masked, POOL_WARPS),
        (add_norm_forward, channels | norm | {"PLACED": True, "NARROW": False}, ROW_WARPS),
        (normalize_forward, wide, WARPS),
        (trunk.zero_padding_forward, channels | {"BLOCK": trunk.ZEROS}, trunk.ZERO_WARPS),
        (trunk.normalize_blocks_forward, masked | of_blocks, trunk.WARPS),
    ):
        types = {name: kind for name, kind in own.items() if name in kernel.arg_names}
        yield kernel.__name__, compiled(kernel, capability, types, sizes, warps)


def products(capability: int, dtype: str) -> Iterator[tuple[str, Cost]]:
    """The encoder's products that end in a norm."""
    if dtype == "fp32":
        return
    kernel, launch = linear_norm.linear_add_norm_forward, launches_of(capability)[NORMS]
    types = {name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr")}
    types |= {"table_ptr": "*fp32", "entries_ptr": "*i32", "eps": "fp32"}
    cut = {"CHANNELS": 256, "ROWS": launch.block}
    cut |= {"DEPTH": linear_norm.DEPTH, "STAGES": linear_norm.STAGES}
    registers = linear_norm.registers_of(launch, 256)
    for name, inputs, placed in (
        ("output_proj", 256, False),
        ("linear2 with positions", 1024, True),
        ("linear2 of the last layer", 1024, False),
    ):
        sizes = cut | {"INPUTS": inputs, "PLACED": placed}
        cost = compiled(kernel, capability, types, sizes, launch.warps, limit=registers)
        yield f"{kernel.__name__}, {name} (block {launch.block}, {launch.warps} warps)", cost


def feed_forward(capability: int, dtype: str) -> Iterator[tuple[str, Cost]]:
    """The encoder's feed-forward network in int8, and the norm before it, where rest is `dtype`."""
    if dtype == "fp32":
        return
    own = dict.fromkeys(("x_ptr", "residual_ptr", "bias_ptr", "weight_ptr"), f"*{dtype}")
    own |= dict.fromkeys(("table_ptr", "scale_ptr"), "*fp32") | {"eps": "fp32"}
    own |= dict.fromkeys(("out_ptr", "placed_ptr"), f"*{dtype}")
    own |= {"narrow_ptr": "*i8", "entries_ptr": "*i32"}
    norm = {"CHANNELS": 256, "CHANNELS_2": 256, "PLACED": False, "NARROW": True, "ROWS": ROWS}
    cost = compiled(add_norm_forward, capability, own, norm, ROW_WARPS)
    yield "add_norm_forward, int8", cost
    types = dict.fromkeys(("x_ptr", "weight_ptr"), "*i8")
    types |= dict.fromkeys(("x_scale_ptr", "out_scale_ptr", "scale_ptr", "bias_ptr"), "*fp32")
    tile = {"ROWS": int8.ROWS, "GROUP": GROUP}
    for name, out, sizes in (
        ("linear1", "*i8", {"WIDTH": 256, "OUT": 1024, "GROUPED": False, "NARROW": True}),
        ("linear2", f"*{dtype}", {"WIDTH": 1024, "OUT": 256, "GROUPED": True, "NARROW": False}),
    ):
        kinds, how = types | {"out_ptr": out}, (int8.WARPS, int8.STAGES)
        cost = compiled(int8.multiply_forward, capability, kinds, tile | sizes, *how)
        yield f"multiply_forward, {name}", cost


def pyramid(capability: int, dtype: str) -> Iterator[tuple[str, Cost]]:
    """The norms and positions of the published multi-scale model."""
    own = dict.fromkeys(("raw_ptr", "memory_ptr", "placed_ptr"), f"*{dtype}")
    own |= dict.fromkeys(("entries_ptr", "lines_ptr"), "*i32") | {
        "areas_ptr": "*i64",
        "eps": "fp32",
    }
    levels = {"LEVELS": 4}
    grouped = levels | {"GROUPS": 32}
    statistics = grouped | {"WIDTH": 8, "WIDTH_2": 8, "CELLS": CELLS}
    placed = grouped | {"CHANNELS": 256, "CHANNELS_2": 256, "CELLS": PLACED}
    for kernel, sizes, warps in (
        (statistics_forward, statistics, CELL_WARPS),
        (combine_forward, {"GROUPS": 32, "CHUNK": CHUNK}, COMBINE_WARPS),
        (place_forward, placed, PLACE_WARPS),
        (position_forward, levels | {"HALF": 128, "HALF_2": 128, "LINES": LINES}, LINE_WARPS),
    ):
        floats = {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
        kinds = floats | ({} if kernel is position_forward else {"levels_ptr": "*i32"}) | own
        types = {name: kind for name, kind in kinds.items() if name in kernel.arg_names}
        yield kernel.__name__, compiled(kernel, capability, types, sizes, warps)


def resampling(capability: int) -> Iterator[tuple[str, Cost]]:
    """What resizes images."""
    types = {"pixels_ptr": "*u8", "taps_ptr": "*i32", "out_ptr": "*u8"}
    types |= dict.fromkeys(("rows_ptr", "columns_ptr"), "*i32")
    for kernel, sizes in ((resample_forward, {"BITS": 14}), (resize_forward, {})):
        own = {name: kind for name, kind in types.items() if name in kernel.arg_names}
        cost = compiled(kernel, capability, own, sizes | {"BLOCK": PIXELS}, PIXEL_WARPS)
        yield kernel.__name__, cost


PARTS = (attention, around, products, feed_forward, pyramid)


def main() -> None:
    for capability in map(int, sys.argv[1:]) if sys.argv[1:] else CAPABILITIES:
        for dtype in DTYPES:
            kernels = (part(capability, dtype) for part in PARTS)
            for name, cost in chain.from_iterable(kernels):
                print(f"sm_{capability} {dtype} {name}: {cost}")
        for name, cost in resampling(capability):
            print(f"sm_{capability} uint8 {name}: {cost}")


if __name__ == "__main__":
    main()
