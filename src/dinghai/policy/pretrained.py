"""Loading a causal language model and its tokenizer from a folder or the hub. Every way to fail is an InputError.

Nothing that a folder holds is run: weights are read from safetensors only, and code beside them is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import utils as hub
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from dinghai.errors import InputError

HUB_TIMEOUT = 10.0  # seconds that the hub may take to say whether it has a model
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_pretrained(path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of `model.path`: a folder, or a name on the hub."""
    where = os.path.expanduser(path)
    if Path(where).exists():
        check_folder(Path(where), path)
        local = True
    elif path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise InputError(f"model.path {path!r} does not exist")
    else:
        where, local = path, not _is_on_hub(path)
    with without_progress_bars(but_downloads=True):
        tokenizer = _load_tokenizer(where, path, local)
        model = _load_model(where, path, dtype, local)
    return model, tokenizer


def check_folder(folder: Path, path: str) -> None:
    """Refuses a folder that cannot hold a model, with the reason."""
    if not folder.is_dir():
        raise InputError(f"model.path {path!r} is a file: name the folder that holds the model")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"model.path {path!r} holds adapters without their model: merge them first (peft's "
                "`merge_and_unload`, then `save_pretrained`)"
            )
        raise InputError(f"model.path {path!r} holds no config.json: name a folder that `save_pretrained` wrote")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"model.path {path!r} holds its weights as a pickle ({pickles[0]}), which may run any code when it is "
            "read: save the model anew with `save_pretrained`, which writes *.safetensors"
        )
    raise InputError(f"model.path {path!r} holds no *.safetensors weights: name a folder that `save_pretrained` wrote")


@contextlib.contextmanager
def without_progress_bars(but_downloads: bool = False) -> Iterator[None]:
    """No bars of the library's inside Dinghai's own display; downloads keep theirs if asked, since they take long."""
    bars, downloads = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    logging.disable_progress_bar()
    if but_downloads and downloads:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
        if not downloads:
            hub.disable_progress_bars()


def _is_on_hub(name: str) -> bool:
    """True if the hub has the model; False if the hub cannot be asked, but there is a copy in its cache.

    Asked once and first, since the library itself asks for each file anew, for minutes, where there is no network.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    nowhere = f"model.path {name!r} is neither a folder here nor a model on the hub"
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except hub.HFValidationError as error:
        raise InputError(f"model.path {name!r} does not exist") from error
    except hub.GatedRepoError as error:
        raise InputError(
            f"model.path {name!r} needs its owner's leave: ask for it on its page, then `hf auth login`"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise InputError(f"{nowhere} (if it is private: `hf auth login`)") from error
    except Exception as error:  # no network, offline mode, a proxy that refuses, …: each client has its own
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return False
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model.path {name!r} is not a folder here, and the hub cannot be reached ({reason});\n"
            "name a folder with the model, or load it once where there is a network: it stays in the cache"
        ) from error
    return True


def _load_tokenizer(where: str, path: str, local: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # a damaged file fails in as many ways as it has parsers
        raise InputError(f"model.path {path!r}: its tokenizer cannot be loaded: {_first_line(error)}") from error


def _load_model(where: str, path: str, dtype: torch.dtype, local: bool) -> Any:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError(
            f"model.path {path!r} cannot be loaded as a causal language model: {_first_line(error)}"
        ) from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(
            f"model.path {path!r} is not a whole causal language model: its weights lack {some}"
            + (" and others" if len(info["missing_keys"]) > 3 else "")
        )
    return model


def _first_line(error: Exception) -> str:
    """The part of an error of the library's that fits into one line."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 300 else f"{line[:300]} …"
