"""The policy head on a CPU against TRL's, Liger's and plain autograd: time, memory, and that all of them agree.

    benchmarks/peers/.venv/bin/python benchmarks/head.py [--rounds 5]

Every head gets the same hidden states and the same head, applies the GRPO rule, and gives the gradients of both. Ours,
TRL's and autograd's rule is `PolicyLoss`; Liger's is its own. TRL's head makes the entropy, as GRPO there asks for, and
so does ours; Liger's and autograd's do not.

First the gradients are held against autograd in float64: in float32 they must be within 1e-6 (relative), in bfloat16 no
further off than autograd's own by a tenth. Then heads take turns; the table has medians. Memory is the growth of the
resident set at its peak beyond the inputs, gradients included, each head in a process of its own, on its second run.

"half without signal": every other sequence has advantage 0 and is left out before the head, as in a training step.
"half clipped": as many sequences are read, but lie beyond the bound, which is only known once they are folded: they
leave before the gradient products, a third of the work. A peer that cannot be imported is named as not installed.

Prints two tables. Exits with status 1 if a bar is missed or a gradient is wrong.

Shapes: N tokens, H hidden size, V vocabulary, B sequences.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dinghai.objective import Layout, Normalizer, PolicyLoss
from dinghai.ops.head import one_pass

SHAPES = [(512, 896, 151936), (2048, 256, 8192)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SEQUENCES = 16
EPS = 0.2
LINEAR = (64, 512, [10_000, 100_000, 1_000_000])  # H, V and the Ns
FASTER, SHARE_OF_MEMORY, SHARE_OF_TIME, LINEAR_WITHIN = 2.0, 0.6, 0.6, 0.1

LOSS = PolicyLoss("grpo", eps_low=EPS, eps_high=EPS)
Gradients = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A shape and a precision."""

    N: int
    H: int
    V: int
    dtype: str

    def __str__(self) -> str:
        return f"({self.N}, {self.H}, {self.V}) {self.dtype}"


@dataclass(frozen=True)
class Inputs:
    """What every head gets."""

    hidden_NH: Tensor
    weight_VH: Tensor
    target_N: Tensor
    logp_old_N: Tensor
    advantage_B: Tensor

    @classmethod
    def of(cls, case: Case) -> Inputs:
        """Hidden states and head whose logits are about as far apart as a small model's; advantages that are not 0."""
        random = torch.Generator().manual_seed(0)
        dtype = DTYPES[case.dtype]
        hidden_NH = torch.randn(case.N, case.H, generator=random).to(dtype)
        weight_VH = torch.randn(case.V, case.H, generator=random).mul_(2 * case.H**-0.5).to(dtype)
        target_N = torch.randint(case.V, (case.N,), generator=random)
        logp_N = torch.cat(
            [
                F.log_softmax(F.linear(x, weight_VH), -1, dtype=torch.float32).gather(1, y[:, None])[:, 0]
                for x, y in zip(hidden_NH.split(64), target_N.split(64), strict=True)
            ]
        )
        # Within the bounds: a token at its edge would be clipped for one head and not for another, by rounding.
        logp_old_N = logp_N + 0.1 * torch.rand(case.N, generator=random)
        sign_B = torch.tensor([1.0, -1.0]).repeat(SEQUENCES // 2)
        return cls(hidden_NH, weight_VH, target_N, logp_old_N, sign_B * (0.5 + torch.rand(SEQUENCES, generator=random)))

    @property
    def cu_seqlens(self) -> Tensor:
        return torch.arange(0, len(self.target_N) + 1, len(self.target_N) // len(self.advantage_B))


def grpo(inputs: Inputs, logp_N: Tensor, rows: slice | None = None) -> Tensor:
    """The loss of all the tokens, or of those rows, of `SEQUENCES` in the step."""
    rows = rows or slice(0, len(inputs.target_N))
    layout = Layout.packed(inputs.target_N.shape, inputs.cu_seqlens)
    length = len(inputs.target_N) // len(inputs.advantage_B)
    return LOSS(
        logp_new=logp_N,
        logp_old=inputs.logp_old_N[rows],
        advantage=inputs.advantage_B[torch.arange(rows.start, rows.stop) // length],
        layout=layout.part(rows),
        normalizer=Normalizer(SEQUENCES * length, SEQUENCES),
    ).loss


def ours(inputs: Inputs) -> Gradients:
    """`one_pass`, the head's gradient into a buffer of zeros."""
    weight_grad_VH = torch.zeros(inputs.weight_VH.shape)
    passed = one_pass(
        inputs.hidden_NH,
        inputs.weight_VH,
        inputs.target_N,
        1.0,
        lambda rows, logp_C, _: grpo(inputs, logp_C, rows),
        weight_grad_VH=weight_grad_VH,
    )
    return passed.grad_hidden_NH, weight_grad_VH


def autograd(inputs: Inputs) -> Gradients:
    """Logits, log-softmax in float32, gather."""
    hidden_NH, weight_VH = _leaves(inputs)
    logp_NV = F.log_softmax(F.linear(hidden_NH, weight_VH), -1, dtype=_at_least_float32(hidden_NH))
    grpo(inputs, logp_NV.gather(1, inputs.target_N[:, None])[:, 0]).backward()
    return _gradients(hidden_NH, weight_VH)


def trl(inputs: Inputs) -> Gradients:
    """The head of TRL's GRPO trainer, called as it calls it."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    hidden_NH, weight_VH = _leaves(inputs)
    logp_N, *_ = ChunkedLogProbFunction.apply(
        hidden_NH, weight_VH, None, inputs.target_N, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("entropy",)
    )
    grpo(inputs, logp_N).backward()
    return _gradients(hidden_NH, weight_VH)


def liger(inputs: Inputs, compiled: bool = True) -> Gradients:
    """Liger's fused GRPO loss with its defaults, without a reference."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    hidden_NH, weight_VH = _leaves(inputs)
    shape = (SEQUENCES, -1)
    head = LigerFusedLinearGRPOLoss(
        beta=0.0, compiled=compiled, use_ref_model=False, epsilon_low=EPS, epsilon_high=EPS, loss_type="grpo"
    )
    loss, _ = head(
        hidden_NH.view(*shape, hidden_NH.shape[1]),
        weight_VH,
        inputs.target_N.view(shape),
        torch.ones(inputs.target_N.view(shape).shape, dtype=torch.long),
        inputs.advantage_B,
        old_per_token_logps=inputs.logp_old_N.view(shape),
    )
    loss.backward()
    return _gradients(hidden_NH, weight_VH)


def liger_eager(inputs: Inputs) -> Gradients:
    """The same without torch.compile."""
    return liger(inputs, compiled=False)


def half_without_signal(inputs: Inputs) -> Gradients:
    """Every other sequence is left out before the head; selecting the others and placing their gradient included."""
    length = len(inputs.target_N) // SEQUENCES
    kept = torch.arange(len(inputs.target_N)).view(SEQUENCES, length)[::2].flatten()
    grad_kept, weight_grad_VH = ours(
        Inputs(
            inputs.hidden_NH.index_select(0, kept),
            inputs.weight_VH,
            inputs.target_N[kept],
            inputs.logp_old_N[kept],
            inputs.advantage_B[::2],
        )
    )
    return torch.zeros_like(inputs.hidden_NH).index_copy_(0, kept, grad_kept), weight_grad_VH


def half_clipped(inputs: Inputs) -> Gradients:
    """Every other sequence, all of negative advantage, has a ratio below 1 - ε."""
    length = len(inputs.target_N) // SEQUENCES
    far_N = torch.tensor([0.0, 1.0]).repeat(SEQUENCES // 2).repeat_interleave(length)
    moved = Inputs(inputs.hidden_NH, inputs.weight_VH, inputs.target_N, inputs.logp_old_N + far_N, inputs.advantage_B)
    return ours(moved)


def _leaves(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs.hidden_NH.detach().requires_grad_(), inputs.weight_VH.detach().requires_grad_()


def _gradients(hidden_NH: Tensor, weight_VH: Tensor) -> Gradients:
    assert hidden_NH.grad is not None
    assert weight_VH.grad is not None
    return hidden_NH.grad, weight_VH.grad


def _at_least_float32(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


HEADS: dict[str, Callable[[Inputs], Gradients]] = {
    "ours": ours,
    "autograd": autograd,
    "TRL": trl,
    "Liger": liger,
    "Liger, eager": liger_eager,
    "half without signal": half_without_signal,
    "half clipped": half_clipped,
}
PEERS = ("autograd", "TRL", "Liger", "Liger, eager")


def why_missing(head: str, inputs: Inputs) -> str:
    """Runs a head once; says what is not installed for it, if anything. Any other error is raised."""
    try:
        HEADS[head](inputs)
    except ImportError as error:
        return f"not installed: {error.name}"
    return ""


def check(case: Case) -> list[str]:
    """Which heads' gradients are further than they may be from those of float64, on a part of the vocabulary."""
    part = Case(min(case.N, 512), case.H, min(case.V, 20_000), case.dtype)
    inputs = Inputs.of(part)
    exact = autograd(
        Inputs(inputs.hidden_NH.double(), inputs.weight_VH.double(), inputs.target_N, *_rest_in_double(inputs))
    )

    def error(head: str) -> float:
        return max(float((a - b).norm() / b.norm()) for a, b in zip(HEADS[head](inputs), exact, strict=True))

    allowed = 1e-6 if case.dtype == "float32" else 1.1 * error("autograd")
    found = error("ours")
    print(f"{case}: gradients {found:.1e} from float64's (autograd's {error('autograd'):.1e})", file=sys.stderr)
    return [] if found <= allowed else [f"{case}: gradients are {found:.1e} from float64's, allowed {allowed:.1e}"]


def _rest_in_double(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs.logp_old_N.double(), inputs.advantage_B.double()


def seconds(case: Case, rounds: int) -> dict[str, float | str]:
    """Median seconds of each head, which take turns; or why it was not run."""
    inputs = Inputs.of(case)
    missing = {head: why_missing(head, inputs) for head in HEADS}
    taken: dict[str, list[float]] = {head: [] for head in HEADS if not missing[head]}
    for _ in range(rounds):
        for head, times in taken.items():
            begun = time.perf_counter()
            HEADS[head](inputs)
            times.append(time.perf_counter() - begun)
    return {head: missing[head] or statistics.median(taken[head]) for head in HEADS}


def peak_bytes(case: Case, head: str) -> int:
    """Growth of the resident set at its peak over a head's second run. Linux only."""
    inputs = Inputs.of(case)
    HEADS[head](inputs)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    gradients = HEADS[head](inputs)
    peak = _status("VmHWM") - before
    del gradients
    return peak


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def apart(case: Case, head: str) -> int | None:
    """`peak_bytes` in a process of its own; None where it cannot be measured."""
    if platform.system() != "Linux":
        return None
    command = [sys.executable, __file__, "--peak", json.dumps([asdict(case), head])]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def table(rounds: int) -> tuple[list[str], list[str]]:
    """The rows of the comparison, and the bars that were missed."""
    rows, missed = [], []
    for case in [Case(*shape, dtype) for shape in SHAPES for dtype in DTYPES]:
        missed += check(case)
        times = seconds(case, rounds if case.V < 100_000 else max(3, rounds // 3))
        memory = {head: apart(case, head) for head in ("ours", *PEERS) if isinstance(times[head], float)}
        for head, taken in times.items():
            mib = memory.get(head)
            figures = taken if isinstance(taken, str) else f"{taken * 1e3:.0f} | {taken / float(times['ours']):.2f}"
            rows.append(f"| {case} | {head} | {figures} | {'–' if mib is None else round(mib / 2**20)} |")
        missed += _missed(case, {h: t for h, t in times.items() if isinstance(t, float)}, memory)
    return rows, missed


def _missed(case: Case, times: dict[str, float], memory: dict[str, int | None]) -> list[str]:
    """The bars that these figures do not meet, in words."""
    own, missed = times["ours"], []
    for head in [head for head in PEERS if head in times]:
        bar = 1.0 if head == "autograd" else FASTER
        if times[head] < bar * own:
            missed.append(f"{case}: {times[head] / own:.2f} x the speed of {head}, bar {bar:g}")
    least = min((m for head, m in memory.items() if head != "ours" and m is not None), default=None)
    if least is not None and memory["ours"] is not None and memory["ours"] > SHARE_OF_MEMORY * least:
        missed.append(f"{case}: {memory['ours'] / least:.2f} of the least memory of the others, bar {SHARE_OF_MEMORY}")
    if times["half without signal"] > SHARE_OF_TIME * own:
        missed.append(f"{case}: half without signal {times['half without signal'] / own:.2f}, bar {SHARE_OF_TIME}")
    return missed


def linear() -> tuple[list[str], list[str]]:
    """Time for each token and memory beyond inputs and results, from 10,000 to 1,000,000 tokens."""
    hidden, vocabulary, tokens = LINEAR
    rows, nanoseconds = [], []
    for N in tokens:
        case = Case(N, hidden, vocabulary, "float32")
        inputs = Inputs.of(case)
        ours(inputs)
        repeats = max(3, 300_000 // N)
        begun = time.perf_counter()
        for _ in range(repeats):
            ours(inputs)
        nanoseconds.append((time.perf_counter() - begun) / repeats / N * 1e9)
        peak = apart(case, "ours")
        beyond = None if peak is None else peak - 4 * N * (hidden + 2) - 4 * hidden * vocabulary
        rows.append(f"| {N:,} | {nanoseconds[-1]:.0f} | {'–' if beyond is None else f'{beyond / 2**20:.1f}'} |")
    off = max(nanoseconds) / min(nanoseconds) - 1
    return rows, [f"cost for each token differs by {off:.0%}, bar {LINEAR_WITHIN:.0%}"] if off > LINEAR_WITHIN else []


def main() -> None:
    """Measures, prints, and says which bars are missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="runs of each head at the small shape; a third at others")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.peak:
        case, head = json.loads(arguments.peak)
        print(peak_bytes(Case(**case), head))
        return
    begun = time.perf_counter()
    rows, missed = table(arguments.rounds)
    print("| (N, H, V) | head | ms | of ours | peak MiB |\n|---|---|---:|---:|---:|", *rows, sep="\n")
    rows, not_linear = linear()
    print("\n| tokens | ns a token | MiB beyond inputs and results |\n|---:|---:|---:|", *rows, sep="\n")
    print(
        f"\n{date.today()}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{time.perf_counter() - begun:.0f} s"
    )
    for sentence in missed + not_linear:
        print(f"missed: {sentence}")
    sys.exit(bool(missed + not_linear))


if __name__ == "__main__":
    main()
