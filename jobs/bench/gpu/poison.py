"""Fill memory that nobody has written with NaN, so that code that reads it is found.

This module is also a plugin of pytest, which poisons memory before each test.
"""

import torch

SMALL, SMALL_BLOCKS = 1 << 20, 256  # torch keeps blocks of up to 1 MiB apart from larger ones
LARGE, LARGE_BLOCKS = 128 << 20, 32
SHARE = 0.5  # greatest share of the free memory
# On CPUs glibc fills fresh memory with bytes of 0x7F, which are 3.4e38 in fp32 and in bf16.
CPU_POISON = {"MALLOC_PERTURB_": str(0x80)}


def poison_memory(device: str) -> None:
    """Fill free memory of a GPU with NaN, and leave it to torch's allocator; CPUs use CPU_POISON.

    Bytes of 0xFF are NaN in fp32, bf16 and fp16, and -1 in integers.
    """
    if device == "cpu":
        return
    free, _ = torch.cuda.mem_get_info(device)
    count = min(LARGE_BLOCKS, int(free * SHARE) // LARGE)
    sizes = [SMALL] * SMALL_BLOCKS + [LARGE] * count
    blocks = [torch.empty(size, dtype=torch.uint8, device=device) for size in sizes]
    for block in blocks:
        block.fill_(0xFF)
    torch.cuda.synchronize(device)


def pytest_runtest_setup() -> None:
    if torch.cuda.is_available():
        poison_memory("cuda")
