"""Times sampling alone: the local engine against `generate` of transformers, and against decoding through its cache.

    python benchmarks/rollout.py [--rounds 3] [--threads 2]

First a model of 4 million parameters in the shape of Qwen3, 16 prompts of 96 to 128 tokens, 16 completions of each,
at most 128 new tokens. Its weights are random, and so many ids end a completion that lengths are spread as in a run;
both samplers get the same prompts, ids and temperature, and draw from the whole distribution. `generate` gets the
prompts padded on the left and `num_return_sequences`. Then the built-in model with its default shapes, against the
decoding that is used for architectures whose attention cannot be asked.

Samplers take turns; figures are medians of useful tokens (up to each completion's end) a second. The bar: at least 8
times `generate`. Log-probabilities are checked against scoring before anything is timed. Prints tables; exits with
status 1 if the bar is missed. CPU, under 4 minutes on two cores.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config

from dinghai.config.settings import ModelSettings, RolloutSettings
from dinghai.policy.builtin import build_tokenizer
from dinghai.policy.model import Policy, load_policy
from dinghai.policy.scoring import TokenSequence, score
from dinghai.rollout.cached import CachedDecoder
from dinghai.rollout.engine import Completion, Sampling
from dinghai.rollout.local import LocalEngine
from dinghai.rollout.sampling import sample

PROMPTS, GROUP_SIZE, NEW_TOKENS, VOCABULARY, END_IDS = 16, 16, 128, 8192, 170
BAR = 8.0
TOLERANCE = 1e-4  # nats, float32


@dataclass(frozen=True)
class Timed:
    """One call: the lengths of its completions up to their ends, and seconds."""

    lengths: list[int]
    seconds: float

    @property
    def rate(self) -> float:
        return sum(self.lengths) / self.seconds


def qwen3_shaped(dtype: torch.dtype) -> Policy:
    """A model of 4.3 million parameters with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=768,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    model.generation_config = GenerationConfig(eos_token_id=list(range(1, END_IDS + 1)), pad_token_id=0)
    return Policy(model, build_tokenizer(512), torch.device("cpu"))


def random_prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(96, 129, (PROMPTS,), generator=generator).tolist()
    return [torch.randint(300, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def by_generate(policy: Policy, prompts: list[list[int]], seed: int) -> Timed:
    """`generate` as its documentation shows it, for the whole batch at once."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    torch.manual_seed(seed)
    begun = time.perf_counter()
    out = policy.model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        num_return_sequences=GROUP_SIZE,
        max_new_tokens=NEW_TOKENS,
    )
    seconds = time.perf_counter() - begun
    ended = torch.isin(out[:, width:], torch.tensor(sorted(policy.end_ids)))
    lengths = torch.where(ended.any(1), ended.byte().argmax(1) + 1, out.shape[1] - width)
    return Timed(lengths.tolist(), seconds)


def by_engine(
    engine: LocalEngine, prompts: list[list[int]], group_size: int, sampling: Sampling, seed: int
) -> tuple[Timed, list[list[Completion]]]:
    begun = time.perf_counter()
    groups = engine.generate(prompts, group_size, sampling, seed)
    seconds = time.perf_counter() - begun
    return Timed([len(c.token_ids) for group in groups for c in group], seconds), groups


def by_cache(decoder: CachedDecoder, prompts: list[list[int]], rollout: RolloutSettings, seed: int) -> Timed:
    rows, tokens = len(prompts) * rollout.group_size, rollout.max_new_tokens
    uniform_RT = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed))

    def choose(logits_nV: torch.Tensor, row_n: torch.Tensor, at_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sample(logits_nV, uniform_RT[row_n, at_n], Sampling(max_new_tokens=tokens))

    begun = time.perf_counter()
    completions = decoder.decode(prompts, rollout.group_size, rollout.batch_size, tokens, choose)
    return Timed([len(c.token_ids) for c in completions], time.perf_counter() - begun)


def check(policy: Policy, engine: LocalEngine, prompts: list[list[int]]) -> float:
    """The largest difference between the log-probs that the engine reports and those of scoring, in nats."""
    _, groups = by_engine(engine, prompts[:4], 3, Sampling(max_new_tokens=24), seed=0)
    sequences = [TokenSequence(p, c.token_ids) for p, g in zip(prompts, groups, strict=False) for c in g]
    with torch.no_grad():
        logp_N, _ = score(policy, sequences, 1.0)
    reported_N = torch.cat([torch.from_numpy(c.logp_sampler) for g in groups for c in g])
    return float((reported_N - logp_N).abs().max())


def in_turn(samplers: dict[str, Callable[[int], Timed]], rounds: int) -> dict[str, list[Timed]]:
    """Each sampler once a round, with the round as its seed."""
    timed: dict[str, list[Timed]] = {name: [] for name in samplers}
    for r in range(rounds):
        for name, sampler in samplers.items():
            timed[name].append(sampler(r))
    return timed


def rate(timed: list[Timed]) -> float:
    return statistics.median(t.rate for t in timed)


def against_generate(rounds: int) -> bool:
    prompts, sampling = random_prompts(), Sampling(max_new_tokens=NEW_TOKENS)
    float32, bfloat16 = qwen3_shaped(torch.float32), qwen3_shaped(torch.bfloat16)
    engines = {
        "float32": LocalEngine(float32, PROMPTS * GROUP_SIZE),
        "bfloat16": LocalEngine(float32, PROMPTS * GROUP_SIZE, torch.bfloat16),
    }
    difference = check(float32, engines["float32"], prompts)
    print(f"\nlog-probs of the engine and of scoring differ by at most {difference:.1g} nats (float32)")
    if not difference <= TOLERANCE:
        raise SystemExit(f"they must not differ by more than {TOLERANCE:.0e}: nothing was timed")
    samplers: dict[str, Callable[[int], Timed]] = {
        "`generate`, float32": lambda seed: by_generate(float32, prompts, seed),
        "`generate`, bfloat16": lambda seed: by_generate(bfloat16, prompts, seed),
    }
    for name, engine in engines.items():
        samplers[f"engine, {name} weights"] = lambda seed, engine=engine: by_engine(  # type: ignore[misc]
            engine, prompts, GROUP_SIZE, sampling, seed
        )[0]
        engine.generate(prompts[:2], 2, sampling, 0)
    timed = in_turn(samplers, rounds)
    base = [rate(timed[f"`generate`, {dtype}"]) for dtype in ("float32", "bfloat16")]
    print("\n| sampler | mean length | of the longest | tokens/s | of `generate` float32 | of `generate` bfloat16 |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, runs in timed.items():
        mean = statistics.fmean(statistics.fmean(t.lengths) for t in runs)
        longest = statistics.fmean(max(t.lengths) for t in runs)
        ratios = " | ".join(f"{rate(runs) / b:.1f} x" for b in base)
        print(f"| {name} | {mean:.1f} | {mean / longest:.2f} | {rate(runs):.0f} | {ratios} |")
    return rate(timed["engine, bfloat16 weights"]) >= BAR * base[0]


def against_cache(rounds: int) -> None:
    rollout = RolloutSettings()
    policy = load_policy(ModelSettings(device="cpu"), seed=0)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 256, (12,), generator=generator).tolist() for _ in range(rollout.prompts)]
    engine, decoder = LocalEngine(policy, rollout.batch_size), CachedDecoder(policy)
    sampling = Sampling.from_settings(rollout)
    timed = in_turn(
        {
            "decoding through the cache": lambda seed: by_cache(decoder, prompts, rollout, seed),
            "engine": lambda seed: by_engine(engine, prompts, rollout.group_size, sampling, seed)[0],
        },
        rounds,
    )
    print(
        f"\nBuilt-in model, {rollout.prompts} x {rollout.group_size} completions of at most {rollout.max_new_tokens}:"
    )
    print("\n| sampler | tokens/s |\n|---|---:|")
    for name, runs in timed.items():
        print(f"| {name} | {rate(runs):.0f} |")


def machine() -> str:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0]}" if models else platform.processor()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{date.today()}, {machine()}, torch {torch.__version__}, {options.threads} threads")
    held = against_generate(options.rounds)
    torch.set_num_threads(1)  # the default of the built-in model
    against_cache(5 * options.rounds)
    print(f"\nbar of {BAR:g} x: {'held' if held else 'missed'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
