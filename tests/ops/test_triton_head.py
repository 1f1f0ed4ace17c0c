"""Proves the policy head's CUDA kernels without a GPU: their results in Triton's interpreter, and that they compile.

Run: pytest tests/ops/test_triton_head.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not on this platform")

from dinghai.ops.triton_head import FOLD_OPTIONS, OPTIONS, TritonKernel

# The interpreter is chosen when Triton is imported, so it has a process of its own.
RESULTS = Path(__file__).with_name("triton_head_results.py")


def test_results_in_the_interpreter() -> None:
    """The tests of what the kernels compute pass. Their file is none that pytest finds by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(RESULTS)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr


@pytest.mark.parametrize("name", ["fold_block", "close_rows", "move_rows", "weigh_with_entropy"])
def test_compiles_for_hopper(name: str) -> None:
    """To machine code, in few enough registers to need (almost) no local memory."""
    import triton
    from triton.backends.compiler import GPUTarget

    from dinghai.ops import triton_kernels

    constants: dict[str, object] = {"BLOCK": {"fold_block": 8192, "close_rows": 128}.get(name, 4096)}
    if name == "fold_block":
        constants |= {"FIRST": False, "LARGEST_EXPONENT": 40.0}
    kernel = getattr(triton_kernels, name)
    signature = {argument: _triton_type(argument, constants) for argument in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind[0] in "*i"}
    options = FOLD_OPTIONS if name == "fold_block" else OPTIONS
    source = triton.compiler.ASTSource(kernel, signature, constants, attrs=aligned)
    binary = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert binary.asm["cubin"]
    assert "ld.global.v4" in binary.asm["ptx"] or name == "close_rows"


def _triton_type(argument: str, constants: dict[str, object]) -> str:
    if argument in constants:
        return "constexpr"
    if argument == "inverse_temperature":
        return "fp32"
    pointers = {"target_ptr": "*i64", "source_ptr": "*i64", "exp_ptr": "*bf16"}
    return pointers.get(argument, "*fp32") if argument.endswith("_ptr") else "i32"


def test_memory_of_a_chunk() -> None:
    """E', the scratch and the rows' numbers of a vocabulary of 152k and a hidden size of 4096 stay under 0.35 GB."""
    kernel = TritonKernel()
    rows = kernel.chunk_rows(151936, torch.bfloat16)
    assert rows == 1024
    with torch.device("meta"):
        kernel._reserve(torch.empty(rows, 4096, dtype=torch.bfloat16), 151936, 8192)
    assert kernel._exp_CV.nbytes + kernel._scratch.nbytes + 20 * rows * 8 < 0.35e9
