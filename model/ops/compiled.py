"""Compile the Triton kernel for GPUs that need not be there, and say what it costs them.

    python -m model.ops.compiled [CAPABILITY ...]

prints registers and spilled bytes a thread for each compute capability, dtype and launch.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from model.ops.launches import ANY, Launch, read_table
from model.ops.triton import msda_forward

CAPABILITIES = (80, 90, 100)
DTYPES = ("fp16", "bf16", "fp32")
FORMS = {2: "points", 4: "boxes"}  # what is sampled around


@dataclass(frozen=True)
class Cost:
    """What one thread of a compiled kernel takes."""

    registers: int
    spilled: int  # bytes


def compile_for(capability: int, dtype: str, launch: Launch, reference: int) -> Cost:
    """The cost of the kernel of the published multi-scale model, padded.

    `capability` as 90 for 9.0; `dtype` one of DTYPES; `reference` one of FORMS.
    """
    sizes = {
        "HEADS": 8,
        "CHANNELS": 32,
        "CHANNELS_2": 32,
        "LEVELS": 4,
        "POINTS": 4,
        "POINTS_2": 4,
        "SAMPLES_2": 16,
        "REFERENCE": reference,
        "PADDED": True,
        "BIASED": True,
        "BLOCK": launch.block,
    }
    types = dict.fromkeys(("value_ptr", "offsets_ptr", "logits_ptr", "out_ptr"), f"*{dtype}")
    types |= dict.fromkeys(("reference_ptr", "ratios_ptr", "bias_ptr"), "*fp32")
    types |= {"levels_ptr": "*i32", "padding_ptr": "*u8"} | dict.fromkeys(sizes, "constexpr")
    names = msda_forward.arg_names
    aligned = [i for i, name in enumerate(names) if name.endswith(("_ptr", "_stride"))]
    kernel = triton.compile(
        ASTSource(
            msda_forward,
            {name: types.get(name, "i32") for name in names},
            {(names.index(name),): size for name, size in sizes.items()},
            {(i,): [["tt.divisibility", 16]] for i in aligned},
        ),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "enable_fp_fusion": True},
    )
    with TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(kernel.asm["ptx"])
        architecture = f"sm_{capability}" + ("a" if capability >= 90 else "")
        command = [get_ptxas(capability).path, "--verbose", f"--gpu-name={architecture}"]
        command += [str(source), "--output-file", str(Path(folder, "kernel.cubin"))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert registers and spilled, said
    return Cost(int(registers[1]), int(spilled[1]))


def main() -> None:
    table = read_table()
    for capability in map(int, sys.argv[1:]) if sys.argv[1:] else CAPABILITIES:
        launches = table.get(f"{capability // 10}.{capability % 10}", table[ANY])
        for dtype in DTYPES:
            for name, launch in launches.items():
                for reference, form in FORMS.items():
                    cost = compile_for(capability, dtype, launch, reference)
                    print(
                        f"sm_{capability} {dtype} {form}, {name} (block {launch.block}, "
                        f"{launch.warps} warps): {cost.registers} registers, "
                        f"{cost.spilled} bytes spilled"
                    )


if __name__ == "__main__":
    main()
