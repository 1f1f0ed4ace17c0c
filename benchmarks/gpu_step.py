"""One side's whole step of GRPO on a GPU, in a process of its own: gpu.py runs it.

    python benchmarks/gpu_step.py {dinghai|TRL} JOB.json-text

A Qwen3 with random weights in bfloat16, whose completions hardly ever end before the limit. One update on each batch of
rollouts, no trace and no log on either side. Prints seconds of the last step and of its rollout, and the tokens drawn,
as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
EPS = 0.2


@dataclass(frozen=True)
class StepJob:
    """One batch of rollouts and one update on it. By default the shape of Qwen3-0.6B."""

    folder: str
    prompts: int = 64
    group_size: int = 8
    new_tokens: int = 512
    prompt_words: int = 128
    steps: int = 2  # the first warms up
    rows: int = 32  # completions of one backward pass
    layers: int = 28
    hidden: int = 1024
    vocabulary: int = 151936

    @property
    def completions(self) -> int:
        return self.prompts * self.group_size


def even_share(completions: Sequence[str], **_: Any) -> list[float]:
    """The reward: the share of words with an even number."""
    split = [text.split() for text in completions]
    return [sum(word[-1] in "02468" for word in words) / max(1, len(words)) for words in split]


def write_model(job: StepJob) -> None:
    """Model, tokenizer of one word a token, and prompts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = {"<pad>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, job.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    heads = job.hidden // 64
    config = Qwen3Config(
        vocab_size=job.vocabulary,
        hidden_size=job.hidden,
        num_hidden_layers=job.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=128 if job.hidden >= 1024 else 32,
        intermediate_size=3 * job.hidden,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(f"{job.folder}/model")
    fast.save_pretrained(f"{job.folder}/model")
    number = torch.randint(2, job.vocabulary, ((job.steps + 1) * job.prompts, job.prompt_words))
    lines = [json.dumps({"question": " ".join(f"w{i}" for i in ids), "answer": "0"}) for ids in number.tolist()]
    Path(job.folder, "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def step_of_dinghai(job: StepJob) -> dict[str, float]:
    """Seconds of the last step, of its rollout, and tokens drawn."""
    from dinghai.config.settings import TrainSettings
    from dinghai.train.loop import train_step
    from dinghai.train.setup import Beginning, seed_everything

    reward = f"{Path(__file__).resolve()}:{even_share.__name__}"
    length = job.prompt_words + job.new_tokens
    settings = TrainSettings.model_validate(
        {
            "run": {"folder": job.folder, "name": "run", "steps": job.steps},
            "model": {"path": f"{job.folder}/model", "device": DEVICE, "dtype": "bfloat16"},
            "task": {"kind": "jsonl", "path": f"{job.folder}/prompts.jsonl", "instruction": "", "held_out": 1},
            "rewards": [{"source": reward}],
            "rollout": {
                "prompts": job.prompts,
                "group_size": job.group_size,
                "max_new_tokens": job.new_tokens,
                "batch_size": job.completions,
            },
            "objective": {"eps_low": EPS, "eps_high": EPS},
            "update": {"epochs": 1, "minibatches": 1, "micro_batch_tokens": job.rows * length, "lr": 1e-6, "warmup": 0},
            "trace": {"enabled": False},
        }
    )
    beginning = Beginning(settings, {reward})
    parts = beginning.parts(Path(job.folder))
    rollout: list[float] = []
    tokens: list[int] = []
    generate = parts.engine.generate

    def timed(*arguments: Any) -> Any:
        begun = time.perf_counter()
        groups = generate(*arguments)
        rollout.append(time.perf_counter() - begun)
        tokens.append(sum(len(completion.token_ids) for group in groups for completion in group))
        return groups

    parts.engine.generate = timed  # type: ignore[method-assign]
    next_prompt, seconds = 0, 0.0
    for number in range(1, job.steps + 1):
        seed_everything(0, "step", number)
        synchronize()
        begun = time.perf_counter()
        _, next_prompt = train_step(parts, number, next_prompt)
        synchronize()
        seconds = time.perf_counter() - begun
    beginning.task.close()
    return {"seconds": seconds, "rollout": rollout[-1], "tokens": tokens[-1]}


def step_of_trl(job: StepJob) -> dict[str, float]:
    """The same of TRL's GRPOTrainer, which samples with transformers' continuous batching."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    began: list[float] = []
    rollout: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize()
            began.append(time.perf_counter())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            began.append(time.perf_counter())

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        tokens.append(sum(map(len, completion_ids)))
        return even_share(completions)

    lines = Path(job.folder, "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    config = GRPOConfig(
        output_dir=f"{job.folder}/trl",
        bf16=False,
        use_cpu=not CUDA,
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": "bfloat16"},
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        max_steps=job.steps,
        per_device_train_batch_size=job.rows,
        gradient_accumulation_steps=job.completions // job.rows,
        num_generations=job.group_size,
        max_completion_length=job.new_tokens,
        use_transformers_continuous_batching=CUDA,
        temperature=1.0,
        beta=0.0,
        epsilon=EPS,
        learning_rate=1e-6,
    )
    trainer = GRPOTrainer(
        model=f"{job.folder}/model",
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [json.loads(line)["question"] for line in lines]}),
        callbacks=[Clock()],
    )
    generate = trainer._generate

    def timed(*arguments: Any) -> Any:
        begun = time.perf_counter()
        made = generate(*arguments)
        rollout.append(time.perf_counter() - begun)
        return made

    trainer._generate = timed
    trainer.train()
    return {"seconds": began[-1] - began[-2], "rollout": rollout[-1], "tokens": tokens[-1]}


# What the sides need besides torch and transformers.
NEEDED = {"dinghai": ["pydantic"], "TRL": ["trl", "datasets"]}
STEPS = {"dinghai": step_of_dinghai, "TRL": step_of_trl}


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


if __name__ == "__main__":
    given = StepJob(**json.loads(sys.argv[2]))
    if not Path(given.folder, "model").exists():
        write_model(given)
    print(json.dumps(STEPS[sys.argv[1]](given)))
