"""What several commands take: the name of a run, the parameters of a rule, files of rules."""

from __future__ import annotations

from pathlib import Path

from dinghai.errors import InputError


def find_run(text: str) -> Path:
    """The folder of a run, given as a path or as a name under runs/. InputError names the nearest one."""
    from dinghai.config.load import CONFIG_FILE
    from dinghai.config.messages import did_you_mean, one_line

    candidates = [Path(text), Path("runs") / text]
    for folder in candidates:
        if (folder / CONFIG_FILE).is_file():
            return folder
    folders = [folder for folder in candidates if text and folder.is_dir()]
    if folders:
        raise InputError(f"{one_line(str(folders[0]))} is a folder but not a run: it holds no {CONFIG_FILE}")
    beside = candidates[0].parent if len(candidates[0].parts) > 1 else Path("runs")
    runs = sorted(p.name for p in beside.iterdir() if p.is_dir()) if beside.is_dir() else []
    near = did_you_mean(candidates[0].name, runs) or (f"; the newest is {_newest(beside, runs)}" if runs else "")
    raise InputError(f"there is no run {one_line(text)} here or in {one_line(str(beside))}/{one_line(near)}")


def _newest(folder: Path, runs: list[str]) -> str:
    return max(runs, key=lambda name: (folder / name).stat().st_mtime)


def rule_parameters(overrides: list[str]) -> dict[str, float | None]:
    """`--eps_high 0.28` -> {"eps_high": 0.28}; `none` switches an optional parameter off."""
    from dinghai.config.overrides import read_overrides

    given: dict[str, float | None] = {}
    for override in read_overrides(overrides):
        try:
            given[override.key] = None if override.text == "none" else float(override.text or "")
        except ValueError:
            raise InputError(f"--{override.key} is {override.text!r}, but must be a number") from None
    return given


def load_rule_files(files: list[str]) -> list[str]:
    """Runs the files of rules that the user has named; nothing else may name them. Gives the SHA-256 of each."""
    if not files:
        return []
    from dinghai.objective import RULES
    from dinghai.user_code import execute_file

    fingerprints = []
    for file in files:
        before = set(RULES)
        fingerprints.append(execute_file(Path(file).expanduser(), "--rule-file")[1])
        if set(RULES) == before:
            raise InputError(
                f"{file} registers no rule: decorate a surrogate in it with dinghai.objective.register_rule"
            )
    return fingerprints
