"""What the trace holds: names, types and units of its columns, its file names, and the version of all this.

    trace/step-000012/update-000.rank0.parquet   one row a token, as the update with that index saw it
    trace/step-000012/samples.rank0.parquet      one row a completion
    trace/step-000012/complete.json              the marker, written last: rows, bytes and hash of each file

The numbers of regions and effects mean what the tables in each file's metadata say, so that a file explains itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dinghai.errors import InputError, RunFailed

TRACE_VERSION = 3  # 1 had none of OPTIONAL; in 2 every token was scored
MARKER = "complete.json"
SAMPLES = "samples"

_METADATA_KEY = b"dinghai.trace"
_STEP_FOLDER = re.compile(r"step-(\d{6,12})")
_UPDATE_FILE = re.compile(r"update-(\d{3,6})\.rank(\d{1,6})\.parquet")
_SAMPLES_FILE = re.compile(r"samples\.rank(\d{1,6})\.parquet")

TOKEN_SCHEMA = pa.schema(
    [
        ("sample", pa.int32()),  # id of the completion, unique within the step
        ("position", pa.int32()),  # of the token within its completion, from 0
        ("token", pa.int32()),  # id in the vocabulary
        ("logp_sampler", pa.float32()),  # nats, as the engine that sampled it reported; to 2**-19
        ("logp_old", pa.float32()),  # nats, the trainer's own weights before the first update on the batch
        ("logp_new", pa.float32()),  # nats, the weights that this update started from
        ("advantage", pa.float32()),
        ("weight", pa.float32()),  # coefficient of the gradient of log pi, as the loss took it; 16 significant bits
        ("region", pa.uint8()),
        ("effect", pa.uint8()),
        ("entropy", pa.float32()),  # nats, of the distribution the token was drawn from; 8 significant bits
        ("log_ratio", pa.float32()),  # nats, of the ratio that the rule saw; null: the token's own, logp_new - logp_old
        ("factor", pa.float32()),  # f_t of the reduction: the minibatch's loss is -sum(f_t * J_t) / D, with one D
        ("correction", pa.float32()),  # of the rollout correction, in weight; 0: dropped; null: there is none; 16 bits
        ("kl_weight", pa.float32()),  # what a KL penalty in the loss adds to weight; null: there is none; 8 bits
    ]
)

# Columns that may be null as a whole; then a file leaves them out. One of version 1 has none of them.
OPTIONAL = ("log_ratio", "factor", "correction", "kl_weight")

# Columns that come of a pass through the model. They are null in the rows of a token that was never scored: no token of
# its sample had an advantage other than 0, and nothing else needed its log-probs, so the model never read it. Its
# weight is 0 and its region no_signal, or masked. NaN is another thing: what a pass through the model came to.
OF_SCORED = ("logp_old", "logp_new", "entropy", "log_ratio", "correction", "kl_weight")

# What the clip decided on (logp_old, logp_new, log_ratio, advantage) is kept to the last bit, so that a replay decides
# the same. The rest is rounded to what its readers need, to keep a token under 16 bytes. Relative errors of weight and
# correction 2**-16 (1.5e-5), of entropy and kl_weight 2**-8 (0.4 %). Sampler log-probs matter as differences from
# logp_old, so theirs is absolute: 2**-19 nats (2e-6), what float32 itself leaves of a log-prob, and far below the
# smallest epsilon in use (3e-4, sequence ratios).
SIGNIFICANT_BITS = {"weight": 16, "entropy": 8, "correction": 16, "kl_weight": 8}
FRACTION_BITS = {"logp_sampler": 18}

# Numbers are incompressible in their last digits: splitting the bytes lets zstd take signs, exponents and the zeros of
# token ids, and runs of one value a sequence as well. A dictionary is longer than what it replaces as soon as a
# vocabulary is large, or each token has an advantage of its own.
TOKEN_ENCODING = {
    "position": "DELTA_BINARY_PACKED",
    **dict.fromkeys(("sample", "token", "logp_sampler", "logp_old", "logp_new", "advantage"), "BYTE_STREAM_SPLIT"),
    **dict.fromkeys(("weight", "entropy", *OPTIONAL), "BYTE_STREAM_SPLIT"),
}
TOKEN_DICTIONARY = ["region", "effect"]


@dataclass(frozen=True)
class Names:
    """What the numbers in the columns `region` and `effect` mean."""

    regions: Mapping[int, str]
    effects: Mapping[int, str]


def samples_schema(reward_parts: list[str]) -> pa.Schema:
    """One row a completion; `reward` is the total and each part of it has a column `reward/<name>`."""
    return pa.schema(
        [
            ("sample", pa.int32()),
            ("group", pa.int32()),  # completions with the same number answer the same prompt
            ("prompt_id", pa.string()),
            ("prompt", pa.string()),
            ("completion", pa.string()),
            ("tokens", pa.int32()),  # length of the completion
            ("finished", pa.bool_()),  # ended by itself, rather than cut at the longest length
            ("reward", pa.float32()),
            *((f"reward/{name}", pa.float32()) for name in reward_parts),
        ]
    )


def step_folder(trace: Path, step: int) -> Path:
    return trace / step_folder_name(step)


def step_folder_name(step: int) -> str:
    return f"step-{step:06d}"


def step_number(folder: Path | os.DirEntry[str]) -> int | None:
    """The step of a folder's name; None where it is not a step's folder."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match[1]) if match else None


def update_file_name(update: int, rank: int) -> str:
    return f"update-{update:03d}.rank{rank}.parquet"


def samples_file_name(rank: int) -> str:
    return f"{SAMPLES}.rank{rank}.parquet"


def update_number(file_name: str) -> int | None:
    """The update's index within its batch; None where the name is not an update's."""
    match = _UPDATE_FILE.fullmatch(file_name)
    return int(match[1]) if match else None


def is_samples_file(file_name: str) -> bool:
    return _SAMPLES_FILE.fullmatch(file_name) is not None


def file_facts(rows: int, content: bytes) -> dict[str, Any]:
    """What the marker says of a file."""
    return {"rows": rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def encode_metadata(names: Names, step: int, rank: int) -> dict[bytes, bytes]:
    """Metadata of a Parquet file. The same arguments give the same bytes."""
    facts = {
        "version": TRACE_VERSION,
        "step": step,
        "rank": rank,
        "regions": {str(number): name for number, name in sorted(names.regions.items())},
        "effects": {str(number): name for number, name in sorted(names.effects.items())},
    }
    return {_METADATA_KEY: json.dumps(facts, sort_keys=True).encode()}


def decode_names(metadata: Mapping[bytes, bytes] | None, path: Path) -> Names:
    """Region and effect names of a file.

    Raises:
        InputError: the file was written by a newer version of Dinghai.
        RunFailed: the metadata is missing or damaged.
    """
    try:
        facts = json.loads((metadata or {})[_METADATA_KEY])
        check_version(facts, path)
        return Names(
            regions={int(number): str(name) for number, name in facts["regions"].items()},
            effects={int(number): str(name) for number, name in facts["effects"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise RunFailed(f"{path} is not a trace file of Dinghai, or is damaged: its metadata is unreadable") from error


def check_version(facts: Mapping[str, Any], path: Path) -> None:
    """Old versions stay readable; a newer one than this program knows is refused.

    Raises:
        InputError: the version is newer than `TRACE_VERSION`.
    """
    version = int(facts["version"])
    if version > TRACE_VERSION:
        raise InputError(
            f"{path} has trace version {version}, and this Dinghai reads versions up to {TRACE_VERSION}: "
            "upgrade Dinghai to read it"
        )
