"""Problems of reasoning-gym by index, in the trainer, and their scoring in a worker.

Two things make scoring them more than a call of `score_answer`:

- Some verifiers raise on text they do not expect. That is the answer's fault if the verifier accepts the data set's own
  answer to the same problem, and a bug in the verifier if it does not.
- Some verifiers `eval` the answer, or hand it to sympy's `parse_expr`, which is the same thing. Text that could call
  anything but a mathematical function is refused before it gets there, and scores 0.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

# Problems are numbered without end, data sets have a size (and some do work for each of its problems when created), so
# they are made in chunks. Problem i of a data set with seed s is drawn from s + i, so chunks continue one another.
CHUNK = 1024
_LONGEST_ANSWER = 100_000  # characters


class Problems:
    """The endless problems of one data set: `problems[i]` is the same for the same first seed."""

    def __init__(self, dataset: str, parameters: dict[str, Any], first_seed: int) -> None:
        self._name = dataset
        self._parameters = library_parameters(dataset, parameters)
        self._first_seed = first_seed
        self.chunk = lru_cache(maxsize=4)(self._make_chunk)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, position = divmod(index, CHUNK)
        entry: dict[str, Any] = self.chunk(number)[position]
        return entry

    def score(self, index: int, entry: dict[str, Any], answer: str) -> Any:
        """The data set's own verdict."""
        return self.chunk(index // CHUNK).score_answer(answer, entry)

    def _make_chunk(self, number: int) -> Any:
        seed = self._first_seed + number * CHUNK
        return library().create_dataset(self._name, size=CHUNK, seed=seed, **self._parameters)


def library() -> Any:
    """reasoning_gym, imported in silence: a package it needs warns about its own syntax when first compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import reasoning_gym
        import reasoning_gym.composite
    return reasoning_gym


def library_parameters(dataset: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters as the library wants them: a `composite` takes objects where a TOML file has tables."""
    if dataset != "composite" or "datasets" not in parameters:
        return parameters
    specification = library().composite.DatasetSpec
    return parameters | {"datasets": [specification(**table) for table in parameters["datasets"]]}


def make_checker(config: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A checker of {"stream", "index", "text", "entry" or null}, which returns one of

    {"score": 0 to 1}, {"score": 0, "malformed": what the verifier raised on the text}, {"broken": what it did wrong}.

    config: dataset, parameters, and first_seeds, one for each stream of problems
    """
    library()  # its import takes seconds, which must not count as the first check's
    problems = {
        stream: Problems(config["dataset"], config["parameters"], first_seed)
        for stream, first_seed in config["first_seeds"].items()
    }
    entry_of = lru_cache(maxsize=4096)(lambda stream, index: problems[stream][index])

    def check(job: dict[str, Any]) -> dict[str, Any]:
        text = stated_answer(job["text"])
        stream, index = job["stream"], job["index"]
        entry = job["entry"] or entry_of(stream, index)
        source = entry["metadata"].get("source_dataset", config["dataset"])  # a composite's entries say whose they are
        if len(text) > _LONGEST_ANSWER or (evaluates_text(source) and not is_inert(text)):
            return {"score": 0.0}
        return _judge(problems[stream], index, entry, text)

    return check


def _judge(problems: Problems, index: int, entry: dict[str, Any], text: str) -> dict[str, Any]:
    try:
        score = problems.score(index, entry, text)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"[:300]
        own_answer = entry["answer"] if isinstance(entry["answer"], str) else ""
        try:
            problems.score(index, entry, own_answer)
        except Exception:
            return {"broken": f"raised {fault}, and raises on the data set's own answer too"}
        return {"score": 0.0, "malformed": fault}
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 1:
        return {"broken": f"returned {score!r:.100}, which is not a number from 0 to 1"}
    return {"score": number}


def stated_answer(completion: str) -> str:
    """What stands in the last <answer>…</answer>, the library's own convention, or else the whole completion."""
    inside = re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", completion, re.DOTALL)
    return str(inside[-1] if inside else completion).strip()


_EVALUATING_CALLS = {"eval", "exec", "parse_expr", "sympify"}


@lru_cache
def evaluates_text(dataset: str) -> bool:
    """Whether scoring evaluates text: `score_answer`, or what it calls in its module."""
    if dataset not in library().factory.DATASETS:
        return True
    dataset_class, _ = library().factory.DATASETS[dataset]
    tree = ast.parse(inspect.getsource(sys.modules[dataset_class.score_answer.__module__]))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    seen, waiting = set(), ["score_answer"]
    while waiting:
        name = waiting.pop()
        if name in _EVALUATING_CALLS and name not in functions:  # propositional_logic has a parse_expr of its own
            return True
        if name in functions and name not in seen:
            seen.add(name)
            waiting += _called_names(functions[name])
    return False


def _called_names(function: ast.FunctionDef) -> list[str]:
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return [f.attr if isinstance(f, ast.Attribute) else f.id for f in calls if isinstance(f, (ast.Attribute, ast.Name))]


_MATHEMATICS = {
    *("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh"),
    *(
        "exp",
        "log",
        "ln",
        "sqrt",
        "Abs",
        "abs",
        "pi",
        "sign",
        "erf",
        "Integral",
    ),  # some integrals have no other right answer in the data set
}
# S, N and friends of sympy evaluate text or do work of any size; as plain symbols they never stand before a bracket.
_NAME = re.compile(r"[^\W\d]\w*")
_CALL_OF_LETTER = re.compile(r"(?<!\w)[^\W\d]\s*\(")
_ATTRIBUTE = re.compile(r"\.\s*[^\W\d]|[^\W\d_]\s*\.")


def is_inert(text: str) -> bool:
    """Whether evaluating the text can call nothing but mathematical functions. It may still take for ever.

    Without a round bracket, Python calls nothing but the operators of built-in values. With one, all names must be
    mathematical or single letters, no letter may be called, and there may be no quotes, attributes or escapes to make
    other names from.
    """
    if "__" in text or "{" in text or _ATTRIBUTE.search(text):
        return False
    if "(" not in text:
        return True
    if any(c in text for c in "'\"\\`@:;[=") or _CALL_OF_LETTER.search(text):
        return False
    return all(len(name) == 1 or name in _MATHEMATICS for name in _NAME.findall(text))
