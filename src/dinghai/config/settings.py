"""Every setting of a run, typed, with its unit, default and usual range. Imports no torch, so `--help` is instant.

A TOML file has the same tables and keys as these classes; `--table.key value` on the command line overrides it.
Unknown keys are refused. Nothing here is read by nobody: `tests/train/test_settings_are_read.py` proves it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base: unknown keys are refused, values are checked, NaN and infinity are not numbers one can set."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=())


class RunSettings(Settings):
    """Where the run lives and how long it is."""

    name: str | None = Field(None, description="folder under `folder`; by default the task and the first free number")
    folder: str = Field("runs", description="folder that holds the runs")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="seed of everything random in the run")
    steps: PositiveInt = Field(40, description="training steps; each draws one batch of rollouts")
    sinks: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        [], description="where metrics go beside metrics.jsonl; each needs the extra of its name"
    )

    @model_validator(mode="after")
    def _name_is_one_folder(self) -> RunSettings:
        if self.name is not None and (
            not self.name.strip() or self.name in {".", ".."} or any(c in "/\\" or ord(c) < 32 for c in self.name)
        ):
            raise ValueError(f"run.name must be one folder's name, without slashes; got {self.name!r}")
        return self


class LoraSettings(Settings):
    """Low-rank adapters (peft); rank 0 trains all weights."""

    rank: Annotated[int, Field(ge=0)] = Field(0, description="rank of the adapters; 0 trains all weights (usual 8-64)")
    alpha: PositiveFloat = Field(32.0, description="scale of the adapters (usual 1-2 times the rank)")
    targets: list[str] = Field([], description="names of the layers to adapt; empty: every linear layer but the head")


class ModelSettings(Settings):
    """The policy. Without a path the built-in model: a small GPT-2 over bytes, made from a configuration."""

    path: str | None = Field(None, description="folder or hub name of a causal language model; none: the built-in one")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="precision of weights and activations")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one")
    threads: PositiveInt | None = Field(
        1,
        description="CPU threads, none: all cores; the small built-in model is fastest on 1, else none is the default",
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    lora: LoraSettings = LoraSettings()
    hidden_size: PositiveInt = Field(128, description="built-in model only: width")
    layers: PositiveInt = Field(1, description="built-in model only: transformer blocks")
    heads: PositiveInt = Field(8, description="built-in model only: attention heads; divides hidden_size")
    context: PositiveInt = Field(1024, description="built-in model only: longest prompt plus completion, in tokens")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ModelSettings:
        if self.hidden_size % self.heads:
            raise ValueError(f"model.heads ({self.heads}) must divide model.hidden_size ({self.hidden_size})")
        return self


class AdditionTaskSettings(Settings):
    """The built-in task: column addition, taught by a teacher that often forgets to carry."""

    kind: Literal["addition"] = "addition"
    digits: Annotated[int, Field(ge=1, le=9)] = Field(3, description="digits of each number")
    forget_carry: Fraction = Field(0.7, description="probability that the teacher of the cold start forgets a carry")
    held_out: PositiveInt = Field(256, description="problems kept out of training, for the accuracy that is reported")


class ReasoningGymTaskSettings(Settings):
    """Any data set of reasoning-gym, scored by its own `score_answer`."""

    kind: Literal["reasoning-gym"] = "reasoning-gym"
    dataset: str = Field(description="name of the data set, as `reasoning_gym.create_dataset` takes it")
    parameters: dict[str, Any] = Field({}, description="parameters of the data set, e.g. {min_digits = 1}")
    instruction: str = Field("\nGive only the final answer.\n", description="text put after each question")
    held_out: PositiveInt = Field(64, description="problems kept out of training")


class JsonlTaskSettings(Settings):
    """A JSON-lines file of questions and answers, scored with math-verify."""

    kind: Literal["jsonl"] = "jsonl"
    path: str = Field(description="the file: one JSON object a line")
    question_key: str = Field("question", description="key of the question")
    answer_key: str = Field("answer", description="key of the answer; what follows a last `####` counts, where present")
    instruction: str = Field("\nPut the final answer in \\boxed{}.\n", description="text put after each question")
    held_out: PositiveInt = Field(32, description="lines kept out of training, chosen by the seed")
    timeout: PositiveFloat = Field(5.0, description="seconds a check of one answer may take; then it scores 0")


TaskSettings = Annotated[
    AdditionTaskSettings | ReasoningGymTaskSettings | JsonlTaskSettings, Field(discriminator="kind")
]


class RewardSettings(Settings):
    """One reward: `task` (the task's own verifier) or `FILE.py:FUNCTION`, which only the command line may name."""

    source: str = Field("task", description="`task`, or FILE.py:FUNCTION")
    weight: float = Field(1.0, description="factor of this reward in the sum")


class ColdStartSettings(Settings):
    """Supervised learning on the task's demonstrations before reinforcement learning."""

    steps: Annotated[int, Field(ge=0)] = Field(
        320, description="optimiser steps; with model.path, or any task but the built-in one, the default is 0"
    )
    batch_size: PositiveInt = Field(64, description="demonstrations a step")
    lr: PositiveFloat = Field(4e-3, description="peak learning rate; linear warm-up over 20 steps, then linear decay")


class RolloutSettings(Settings):
    """How completions are sampled."""

    prompts: PositiveInt = Field(32, description="prompts a step")
    group_size: PositiveInt = Field(8, description="completions of each prompt (G)")
    max_new_tokens: PositiveInt = Field(
        32, description="longest completion, in tokens; for any task but the built-in one the default is 256"
    )
    temperature: PositiveFloat = Field(1.0, description="sampling temperature; the ratios are taken at it too")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus sampling; 1 is off")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="keep the k likeliest tokens; 0 is off")
    batch_size: PositiveInt = Field(256, description="completions decoded at once")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="precision of the weights that completions are sampled with; none: that of model.dtype"
    )
    dynamic_sampling: bool = Field(False, description="redraw groups without signal (DAPO)")
    max_redraws: PositiveInt = Field(4, description="dynamic sampling: rounds of redrawing before going on with fewer")
    overlong: Literal["keep", "mask", "penalty"] = Field(
        "keep", description="completions cut at max_new_tokens: scored as they are, left out of the loss, or penalised"
    )
    overlong_buffer: PositiveInt = Field(
        8,
        description="overlong=penalty: tokens before the limit over which the penalty grows from 0 to -1 (DAPO eq. 13)",
    )


class KLSettings(Settings):
    """The reference model, if any: the weights that reinforcement learning started from."""

    beta: NonNegativeFloat = Field(0.0, description="coefficient; 0 loads no reference (usual 0.001-0.04)")
    estimator: Literal["k1", "k2", "k3", "k1+", "k3+"] = Field(
        "k3", description="estimator; in the loss k3 has the gradient of the forward KL and k1 has none in expectation"
    )
    correction: Literal["none", "on-policy", "ratio"] = Field(
        "none",
        description="of the estimator's gradient in the loss; with ratio, k3 has the gradient of the reverse KL",
    )
    where: Literal["loss", "reward"] = Field("loss", description="added to the loss, or subtracted from the reward")
    controller: Literal["fixed", "adaptive", "proportional"] = Field(
        "fixed",
        description="beta after each step: as it is, doubled or halved (PPO), or in proportion (Ziegler et al.)",
    )
    target: PositiveFloat | None = Field(
        None, description="adaptive, proportional: the KL to the reference to aim at, nats a token (usual 0.001-0.1)"
    )
    gain: Annotated[float, Field(gt=0, lt=5)] = Field(
        0.1, description="proportional: largest change of beta in a step is 0.2 times this"
    )

    @model_validator(mode="after")
    def _controller_has_a_target(self) -> KLSettings:
        if self.controller == "fixed" and self.target is not None:
            raise ValueError(
                f"objective.kl.target ({self.target:g}) is read by objective.kl.controller adaptive and proportional "
                "only: set one of them, or leave it out"
            )
        if self.controller != "fixed" and (self.target is None or self.beta == 0):
            raise ValueError(
                f"objective.kl.controller {self.controller} needs objective.kl.target, the KL to aim at, and an "
                "objective.kl.beta above 0 to begin with"
            )
        if self.correction != "none" and self.where == "reward":
            raise ValueError(
                f"objective.kl.correction {self.correction} corrects a gradient in the loss; with objective.kl.where "
                '= "reward" there is none: set it to "none"'
            )
        return self


class ObjectiveSettings(Settings):
    """The policy objective. What is none here is as the rule's paper has it: `dinghai rules NAME` shows it."""

    rule: str = Field("grpo", description="name of the rule; `dinghai rules` lists them")
    eps_low: PositiveFloat | None = Field(
        None, description="lower bound is 1-eps_low (usual 0.1-0.3, of sequence ratios 0.0003-0.01)"
    )
    eps_high: PositiveFloat | None = Field(
        None, description="upper bound is 1+eps_high (usual 0.1-0.4, of sequence ratios 0.0004-0.01)"
    )
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        None, description="absolute ratio beyond which tokens with a negative advantage are stopped (usual 3-10)"
    )
    parameters: dict[str, float | None] = Field(
        {}, description="any other parameter of the rule, by name, e.g. {cap = 5.0}"
    )
    ratio: Literal["token", "sequence", "sequence-token", "sequence-product"] | None = Field(
        None, description="importance ratio of each token, or of its sequence"
    )
    reduction: (
        Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "token-sum"]
        | None
    ) = Field(None, description="how the tokens of a minibatch are averaged")
    entropy_bonus: NonNegativeFloat = Field(0.0, description="coefficient of the mean token entropy, in nats")
    kl: KLSettings = KLSettings()
    corrections: dict[str, dict[str, float]] = Field(
        {},
        description="rollout corrections by name with their parameters, e.g. {tis = {cap = 2.0}}; "
        "`dinghai rules` lists them",
    )

    @model_validator(mode="after")
    def _each_parameter_once(self) -> ObjectiveSettings:
        for name in ("eps_low", "eps_high", "dual_clip"):
            if getattr(self, name) is not None and name in self.parameters:
                raise ValueError(f"objective.{name} is given twice, also as objective.parameters.{name}: leave one out")
        return self


class GroupAdvantageSettings(Settings):
    """GRPO: the reward relative to the other completions of the same prompt."""

    kind: Literal["group"] = "group"
    scale: Literal["group", "batch", "none"] = Field(
        "group", description="divide by the standard deviation of the group, of the batch, or not at all (Dr. GRPO)"
    )


class RlooAdvantageSettings(Settings):
    """RLOO: the reward less the mean of the others of the group (arXiv 2402.14740)."""

    kind: Literal["rloo"] = "rloo"


class ReinforcePlusPlusAdvantageSettings(Settings):
    """REINFORCE++: the reward-to-go of each token, normalised over the batch (arXiv 2501.03262)."""

    kind: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="discount a token; the paper has 1")


class ReinforcePlusPlusBaselineAdvantageSettings(Settings):
    """REINFORCE++ with the group's mean as baseline, normalised over the batch (arXiv 2501.03262)."""

    kind: Literal["reinforce_plus_plus_baseline"] = "reinforce_plus_plus_baseline"


class OpoAdvantageSettings(Settings):
    """OPO: the reward less the group's mean weighted by length; meant for one update a batch (arXiv 2505.23585)."""

    kind: Literal["opo"] = "opo"


class GdpoAdvantageSettings(Settings):
    """GDPO: each reward normalised in its group, then added with its weight (arXiv 2601.05242)."""

    kind: Literal["gdpo"] = "gdpo"


class PassAtKAdvantageSettings(Settings):
    """Pass@k training: the reward of sets of k completions, right if one of them is (arXiv 2508.10751)."""

    kind: Literal["pass_at_k"] = "pass_at_k"
    k: PositiveInt = Field(4, description="completions of a set; at most rollout.group_size. Rewards must be 0 or 1")


class BestOfGroupAdvantageSettings(Settings):
    """The best completion gets its lead over the second, the others nothing (arXiv 2503.19595)."""

    kind: Literal["best_of_group"] = "best_of_group"


class GaeAdvantageSettings(Settings):
    """PPO: generalised advantage estimation from a critic (a value head on a copy of the model)."""

    kind: Literal["gae"] = "gae"
    gamma: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="discount a token")
    lam: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="lambda of GAE (usual 0.95-1)")
    whiten: bool = Field(True, description="normalise advantages over the batch")
    critic_lr: PositiveFloat = Field(
        2e-3, description="learning rate of the critic; with model.path 1e-5 is the default"
    )
    value_clip: PositiveFloat | None = Field(0.2, description="half-width of the value clip; none: off")
    critic_warmup: Annotated[int, Field(ge=0)] = Field(2, description="steps that train the critic alone")


AdvantageSettings = Annotated[
    GroupAdvantageSettings
    | RlooAdvantageSettings
    | ReinforcePlusPlusAdvantageSettings
    | ReinforcePlusPlusBaselineAdvantageSettings
    | OpoAdvantageSettings
    | GdpoAdvantageSettings
    | PassAtKAdvantageSettings
    | BestOfGroupAdvantageSettings
    | GaeAdvantageSettings,
    Field(discriminator="kind"),
]
# Advantages that do not compare the completions of one prompt.
WITHOUT_GROUPS = ("reinforce_plus_plus", "gae")


class ShortcutSettings(Settings):
    """What spares the update work. Each gives the same result to rounding; they can be left out to prove that."""

    packing: bool = Field(True, description="sequences are read end to end, without padding")
    shared_prompts: bool = Field(
        True, description="a prompt is read once for all its completions, in training too; needs packing"
    )
    one_pass_head: bool = Field(
        True, description="log-probs and both gradients of the head from one pass over its logits, chunk by chunk"
    )
    skip_no_signal: bool = Field(
        True, description="samples without any advantage are not scored, where nothing else needs their log-probs"
    )
    old_log_probs: Literal["score", "first-update", "engine"] = Field(
        "first-update",
        description="a pass of its own for all; for all but the samples of the first update, whose ratio is 1; "
        "or what the engine sampled with, where that is the policy itself",
    )

    @model_validator(mode="after")
    def _sharing_needs_packing(self) -> ShortcutSettings:
        if self.packing or not self.shared_prompts:
            return self
        if "shared_prompts" in self.model_fields_set:
            raise ValueError(
                "update.shortcuts.shared_prompts is true, but update.shortcuts.packing is false: prompts are shared "
                "in packed sequences only; set both to true, or both to false"
            )
        self.shared_prompts = False
        return self


class UpdateSettings(Settings):
    """What is done with each batch of rollouts. epochs x minibatches is how often it updates the policy."""

    epochs: PositiveInt = Field(
        2, description="passes over each batch of rollouts; with one update in all the clip is inert"
    )
    minibatches: PositiveInt = Field(2, description="optimiser steps a pass")
    micro_batch_tokens: PositiveInt = Field(
        16384,
        description="positions that one forward pass reads, with padding where there is any; bounds memory",
    )
    lr: PositiveFloat = Field(
        4e-4, description="peak learning rate; with model.path the default is 1e-6, or 1e-5 for LoRA"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="of the learning rate, after warm-up: linear and cosine end near 0"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(5, description="steps over which the learning rate rises to its peak")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), description="of AdamW")
    weight_decay: NonNegativeFloat = Field(0.0, description="of AdamW")
    max_grad_norm: PositiveFloat | None = Field(1.0, description="gradient norm is clipped to it; none: not clipped")
    target_kl: PositiveFloat | None = Field(
        None,
        description="leave the batch once KL(old||new) of a minibatch passes 1.5 times this (nats; usual 0.01-0.05)",
    )
    shortcuts: ShortcutSettings = ShortcutSettings()


class EvaluationSettings(Settings):
    """Greedy decoding of the held-out problems, scored by the task's verifier."""

    every: PositiveInt = Field(10, description="steps between evaluations")


class TraceSettings(Settings):
    """The record of each token's fate."""

    enabled: bool = Field(True, description="write the trace")
    tokens: PositiveInt = Field(
        100_000, description="tokens kept of each update at most; whole groups are sampled beyond it"
    )


class CheckpointSettings(Settings):
    """What makes `dinghai resume` exact."""

    every: PositiveInt = Field(10, description="steps between checkpoints")
    keep: PositiveInt = Field(
        2, description="checkpoints kept; at least 2 lets a damaged one fall back on the one before"
    )


class TrainSettings(Settings):
    """All settings of a run."""

    run: RunSettings = RunSettings()
    model: ModelSettings = ModelSettings()
    task: TaskSettings = AdditionTaskSettings()
    rewards: list[RewardSettings] = Field([RewardSettings()], min_length=1, description="rewards, added with weights")
    cold_start: ColdStartSettings = ColdStartSettings()
    rollout: RolloutSettings = RolloutSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    advantage: AdvantageSettings = GroupAdvantageSettings()
    update: UpdateSettings = UpdateSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    trace: TraceSettings = TraceSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    @model_validator(mode="after")
    def _fill_in_defaults(self) -> TrainSettings:
        """Defaults that depend on other settings, where nothing was set; a run's config.json holds what came of it."""
        builtin_model, builtin_task = self.model.path is None, self.task.kind == "addition"

        def default(table: Settings, key: str, value: float | int | None) -> None:
            if key not in table.model_fields_set:
                setattr(table, key, value)

        if not (builtin_model and builtin_task):
            default(self.cold_start, "steps", 0)
        if not builtin_task:
            default(self.rollout, "max_new_tokens", 256)
        if not builtin_model:
            default(self.update, "lr", 1e-5 if self.model.lora.rank else 1e-6)
            default(self.model, "threads", None)
            if self.advantage.kind == "gae":
                default(self.advantage, "critic_lr", 1e-5)
        return self

    @model_validator(mode="after")
    def _settings_agree(self) -> TrainSettings:
        rollout, update = self.rollout, self.update
        compares = self.advantage.kind not in WITHOUT_GROUPS
        if compares and rollout.group_size < 2:
            raise ValueError(
                f"rollout.group_size is 1, but the advantage {self.advantage.kind} compares the completions of one "
                'prompt: set rollout.group_size to 2 or more, or advantage.kind = "gae"'
            )
        if self.advantage.kind == "pass_at_k" and self.advantage.k > rollout.group_size:
            raise ValueError(
                f"advantage.k ({self.advantage.k}) is more than rollout.group_size ({rollout.group_size}): lower it"
            )
        shaped = [
            f"{key} = {value!r}".replace("'", '"')
            for key, value in (("rollout.overlong", rollout.overlong), ("objective.kl.where", self.objective.kl.where))
            if value in ("penalty", "reward")
        ]
        if shaped and self.advantage.kind in ("gdpo", "pass_at_k"):
            raise ValueError(
                f"advantage.kind {self.advantage.kind} is made from the rewards as they are, so {shaped[0]} has "
                "nothing to act on: choose another value there, or another advantage"
            )
        if update.minibatches > rollout.prompts * rollout.group_size:
            raise ValueError(
                f"update.minibatches ({update.minibatches}) is more than the completions of a step "
                f"({rollout.prompts} x {rollout.group_size}): lower it"
            )
        if rollout.overlong == "penalty" and rollout.overlong_buffer > rollout.max_new_tokens:
            raise ValueError(
                f"rollout.overlong_buffer ({rollout.overlong_buffer}) is longer than "
                f"rollout.max_new_tokens ({rollout.max_new_tokens}): lower it"
            )
        if not compares and rollout.dynamic_sampling:
            raise ValueError(
                "rollout.dynamic_sampling redraws groups whose rewards agree, which the advantage "
                f'{self.advantage.kind} does not need: set it to false, or advantage.kind = "group"'
            )
        return self

    @property
    def updates_per_batch(self) -> int:
        """How many optimiser steps one batch of rollouts gets (the mu of GRPO). With 1 the ratio is always 1."""
        return self.update.epochs * self.update.minibatches
