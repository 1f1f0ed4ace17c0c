"""Any data set of reasoning-gym, scored by its own `score_answer`."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib.util
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dinghai.config.settings import ReasoningGymTaskSettings
from dinghai.errors import InputError, RunFailed
from dinghai.tasks.base import Prompt
from dinghai.tasks.check_reasoning import CHUNK, Problems, library, library_parameters
from dinghai.tasks.checker import CheckerPool

logger = logging.getLogger(__name__)

# Some verifiers evaluate the answer, and `9**9**9**9` is an answer. A sane check takes milliseconds.
_CHECK_SECONDS = 10.0
_WORKERS = 2  # each takes seconds to import the library; a check takes a fraction of a millisecond
_DRAWS_FOR_A_NEW_QUESTION = 64
# The library draws problem i from seed + i, so seeds that are near give the same problems. Training starts below 2^30,
# held-out problems at 3 * 2^30 or above: they cannot meet in a billion prompts, and no seed passes 2^32, numpy's end.
_STREAM_START = {"train": 0, "held_out": 3 * 2**30}
_STREAM_SPREAD = {"train": 2**30, "held_out": 2**29}
_MOST_TRAIN_PROMPTS = 2**31


class ReasoningGymTask:
    """Problems of one data set, made as they are asked for.

    A held-out question is never a training question: a training problem that asks one is passed over for the next of
    its own substitutes. Held-out questions differ from one another too. Data sets with too few questions are refused.

    timeouts, crashes, malformed: answers that scored 0 since their check took too long, ended its process, or raised
    """

    def __init__(self, settings: ReasoningGymTaskSettings, seed: int) -> None:
        self._settings = settings
        self._check_settings()
        self.name = settings.dataset
        self.timeouts = self.crashes = self.malformed = 0
        first_seeds = {stream: _first_seed(seed, stream) for stream in _STREAM_START}
        self._problems = {
            stream: Problems(settings.dataset, settings.parameters, first) for stream, first in first_seeds.items()
        }
        # Some data sets take a tenth of a second to make a problem, which is needed again when its answers are scored.
        self._entry = lru_cache(maxsize=4096)(self._make_entry)
        self.held_out = self._distinct(settings.held_out)
        self._held_out_questions = {prompt.text for prompt in self.held_out}
        config = {"dataset": settings.dataset, "parameters": settings.parameters, "first_seeds": first_seeds}
        self._pool = CheckerPool(
            "dinghai.tasks.check_reasoning:make_checker", config, workers=_WORKERS, timeout=_CHECK_SECONDS
        )
        self._pool.start()

    def train_prompt(self, index: int) -> Prompt:
        """The index-th training prompt; its substitutes, should it be held out, lie beyond all others."""
        for draw in range(_DRAWS_FOR_A_NEW_QUESTION):
            prompt = self._prompt("train", index if draw == 0 else self._substitute(index, draw))
            if prompt.text not in self._held_out_questions:
                return prompt
        raise InputError(f"nearly all questions of {self.name} are held out: {_more_questions(self._settings)}")

    def demonstration(self, index: int) -> tuple[Prompt, str] | None:
        """A training prompt with its answer, where the data set states one answer and not a rule for many."""
        prompt = self.train_prompt(index)
        return None if prompt.answer is None else (prompt, prompt.answer)

    def score(self, prompt: Prompt, completion: str) -> float:
        """What the data set's verifier makes of the text in <answer>…</answer>, or of the whole completion; 0 to 1."""
        return self.score_batch([prompt], [completion])[0]

    def score_batch(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """The scores of many completions. Raises RunFailed if the verifier itself is broken."""
        jobs = [self._job(p, completion) for p, completion in zip(prompts, completions, strict=True)]
        return [
            self._score_of(outcome, prompt) for outcome, prompt in zip(self._pool.check(jobs), prompts, strict=True)
        ]

    def close(self) -> None:
        """Ends the processes that check answers."""
        self._pool.close()

    def _job(self, prompt: Prompt, completion: str) -> dict[str, Any]:
        """The entry travels with the answer where JSON can carry it; else the worker makes it again from its index."""
        stream, index = prompt.extra["stream"], prompt.extra["index"]
        entry = self._entry(stream, index)
        try:
            lossless = json.loads(json.dumps(entry)) == entry  # a tuple, say, would come back as a list
        except (TypeError, ValueError):
            lossless = False
        return {"stream": stream, "index": index, "text": completion, "entry": entry if lossless else None}

    def _score_of(self, outcome: Any, prompt: Prompt) -> float:
        if outcome.fault == "raised" or (outcome.fault is None and "broken" in outcome.value):
            detail = outcome.detail or outcome.value["broken"]
            raise RunFailed(f"the verifier of reasoning-gym's {self.name} is broken: on {prompt.id} it {detail}")
        if outcome.fault is None:
            if "malformed" in outcome.value:
                self.malformed += 1
                self._warn(self.malformed, f"raised {outcome.value['malformed']}", prompt)
            return float(outcome.value["score"])
        if outcome.fault == "timeout":
            self.timeouts += 1
            self._warn(self.timeouts, f"took longer than {_CHECK_SECONDS:g} s", prompt)
        else:
            self.crashes += 1
            self._warn(self.crashes, "ended its process twice", prompt)
        return 0.0

    def _warn(self, count: int, what: str, prompt: Prompt) -> None:
        if count == 1:
            logger.warning("the check of an answer to %s %s; such answers score 0", prompt.id, what)

    def _prompt(self, stream: str, index: int) -> Prompt:
        entry = self._entry(stream, index)
        answer = entry["answer"]
        return Prompt(
            id=f"{self._settings.dataset}:{stream}:{index}",
            text=entry["question"] + self._settings.instruction,
            answer=answer if isinstance(answer, str) else None,
            extra={"stream": stream, "index": index, "metadata": entry.get("metadata", {})},
        )

    def _make_entry(self, stream: str, index: int) -> dict[str, Any]:
        try:
            return self._problems[stream][index]
        except Exception as error:
            raise InputError(
                f"reasoning-gym's {self._settings.dataset} cannot make a problem with task.parameters "
                f"{self._settings.parameters}: {type(error).__name__}: {error}"
            ) from error

    def _distinct(self, count: int) -> list[Prompt]:
        by_text: dict[str, Prompt] = {}
        draws = max(4 * count, 256)
        for index in range(draws):
            prompt = self._prompt("held_out", index)
            by_text.setdefault(prompt.text, prompt)
            if len(by_text) == count:
                return list(by_text.values())
        raise InputError(
            f"reasoning-gym's {self._settings.dataset} gave {len(by_text)} different questions in {draws} draws, fewer "
            f"than task.held_out ({count}): {_more_questions(self._settings)}"
        )

    @staticmethod
    def _substitute(index: int, draw: int) -> int:
        # Spread over the upper half of the stream, so that neighbours do not share substitutes.
        digest = hashlib.sha256(f"{index}/{draw}".encode()).digest()
        return _MOST_TRAIN_PROMPTS // 2 + int.from_bytes(digest[:4], "big") % (_MOST_TRAIN_PROMPTS // 4)

    def _check_settings(self) -> None:
        name, parameters = self._settings.dataset, self._settings.parameters
        if importlib.util.find_spec("reasoning_gym") is None:
            raise InputError(
                "task.kind = \"reasoning-gym\" needs a package: install it with `pip install 'dinghai[tasks]'`"
            )
        datasets = library().factory.DATASETS
        if name not in datasets:
            raise InputError(f"reasoning-gym has no data set {name!r}; {_nearest(name, sorted(datasets))}")
        valid = [field.name for field in dataclasses.fields(datasets[name][1])]
        for key in parameters:
            if key in ("seed", "size"):
                raise InputError(
                    f"task.parameters.{key} is not yours to set: run.seed decides, and problems have no end"
                )
            if key not in valid:
                others = [other for other in valid if other not in ("seed", "size")]
                raise InputError(f"{name} has no parameter {key!r}; {_nearest(key, others)}")
        try:
            library().create_dataset(name, seed=0, size=CHUNK, **library_parameters(name, parameters))
        except Exception as error:
            raise InputError(f"{name} refuses task.parameters {parameters}: {error or type(error).__name__}") from error


def _first_seed(seed: int, stream: str) -> int:
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return _STREAM_START[stream] + int.from_bytes(digest[:4], "big") % _STREAM_SPREAD[stream]


def _nearest(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, 3, 0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"it has {', '.join(valid)}"


def _more_questions(settings: ReasoningGymTaskSettings) -> str:
    return f"lower task.held_out or widen task.parameters {settings.parameters}"
