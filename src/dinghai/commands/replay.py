"""`dinghai replay`: what another epsilon, rule or rollout correction would have decided on a run's tokens."""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinghai.commands.arguments import find_run, load_rule_files
from dinghai.errors import InputError

if TYPE_CHECKING:
    from dinghai.lens.replay_candidates import Candidate
    from dinghai.objective import PolicyLoss
    from dinghai.objective.correction import RolloutCorrection

HELP = "what another epsilon or rule would have decided"
DESCRIPTION = """\
What another epsilon, rule or rollout correction would have decided on the tokens of a recorded run, without the model.
Without any of them: the run's rule with the bounds of papers, and some other rules.
"""
EPILOG = """\
examples:
  dinghai replay my-run --eps_high 0.2,0.28,0.4                   several values: each is tried
  dinghai replay my-run --eps_low 0.1,0.2 --eps_high 0.2,0.28     each with each
  dinghai replay my-run --rule cispo,sapo --figure replay.svg
  dinghai replay my-run --correction tis.cap=2
"""
OWN_OPTIONS = frozenset(
    {"--rule", "--ratio", "--correction", "--steps", "--figure", "--page", "--json", "--rule-file", "--help"}
)
CANDIDATES_AT_MOST = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds those of the command."""
    parser.usage = (
        "dinghai replay RUN [--rule NAME,...] [--PARAMETER VALUE,...] [--ratio LEVEL,...] "
        "[--correction NAME[.PARAMETER=VALUE]] [--steps 1-10,40] [--figure FILE] [--page [FILE]] [--json]"
    )
    parser.epilog = EPILOG
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its name under runs/")
    parser.add_argument("--rule", metavar="NAME,...", help="rules of `dinghai rules` (default: the run's)")
    parser.add_argument("--ratio", metavar="LEVEL,...", help="the ratio that the rule looks at: token, sequence, ...")
    parser.add_argument(
        "--correction", metavar="NAME[.PARAMETER=VALUE]", action="append", default=[],
        help="a rollout correction in place of the run's, or none; several act together",
    )  # fmt: skip
    parser.add_argument(
        "--steps", metavar="1-10,40", help="recorded steps to read (default: all, up to 2 million rows)"
    )
    parser.add_argument("--figure", metavar="FILE", help="write a figure, .svg or .png (needs matplotlib)")
    parser.add_argument(
        "--page",
        metavar="FILE",
        nargs="?",
        const="",
        help="write the report, which has sliders",
    )
    parser.add_argument("--json", action="store_true", help="all sums and figures as JSON instead of tables")
    parser.add_argument(
        "--rule-file", metavar="FILE.py", action="append", default=[],
        help="a file that registers rules of your own, which is then run",
    )  # fmt: skip


def run(options: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the command."""
    folder = find_run(options.run)
    steps = read_steps(options.steps) if options.steps is not None else None
    figure = _checked_file("--figure", options.figure, (".svg", ".png")) if options.figure is not None else None
    if options.page:
        _checked_file("--page", options.page, (".html",))
    parameters = read_values(overrides)
    load_rule_files(options.rule_file)
    from dinghai.lens.replay import recorded_objective
    from dinghai.lens.replay_compare import compare

    own = recorded_objective(folder)
    candidates = candidates_of(own, options, parameters)
    found = compare(folder, candidates, steps)
    if options.json:
        import json

        from dinghai.lens.replay_json import as_json

        print(json.dumps(as_json(folder, found), ensure_ascii=False, allow_nan=False))
    else:
        from dinghai.commands.replay_tables import print_comparison

        print_comparison(folder, found)
    written = []
    if figure is not None:
        from dinghai.view.figure_replay import write_figure

        written.append(str(write_figure(found, figure)))
    if options.page is not None:
        written.append(f"{write_page(folder, options.page)}#replay")
    if written and not options.json:
        print("\n" + "\n".join(written))


def write_page(folder: Path, file: str) -> Path:
    """The run's report, and a copy of it where a file is named. Gives the latter's path."""
    from dinghai.trace.files import write_atomically
    from dinghai.view.report import write_report

    report = write_report(folder)
    if not file:
        return report
    write_atomically(Path(file), report.read_bytes(), then="run the command again")
    return Path(file)


def candidates_of(own: PolicyLoss, options: argparse.Namespace, parameters: dict[str, list[Any]]) -> list[Candidate]:
    """What the arguments ask for; by default the bounds of papers and other rules."""
    from dinghai.lens.replay_candidates import candidate, default_candidates

    if not (options.rule or options.ratio or options.correction or parameters):
        return default_candidates(own)
    corrections = read_corrections(options.correction) if options.correction else None
    rules = _listed(options.rule, "--rule")
    ratios = _listed(options.ratio, "--ratio")
    combined = [
        (rule, ratio, dict(zip(parameters, values, strict=True)))
        for rule in rules
        for ratio in ratios
        for values in itertools.product(*parameters.values())
    ]
    if len(combined) > CANDIDATES_AT_MOST:
        raise InputError(
            f"these values make {len(combined)} combinations; {CANDIDATES_AT_MOST} at most are replayed at once"
        )
    return [
        candidate(own, values, rule=rule, ratio=ratio, correction=corrections, key=f"candidate-{place}")
        for place, (rule, ratio, values) in enumerate(combined, start=1)
    ]


def _listed(text: str | None, option: str) -> list[Any]:
    """Names between commas; [None] where nothing is asked for."""
    if text is None:
        return [None]
    names = [name.strip().replace("-", "_") if option == "--rule" else name.strip() for name in text.split(",")]
    if not all(names):
        raise InputError(f"{option} is {text!r}, but must be a name, or several with a comma between")
    return list(dict.fromkeys(names))


def read_values(overrides: list[str]) -> dict[str, list[float | None]]:
    """`--eps_high 0.2,0.28` -> {"eps_high": [0.2, 0.28]}; `none` switches an optional parameter off."""
    from dinghai.config.overrides import read_overrides

    given: dict[str, list[float | None]] = {}
    for override in read_overrides(overrides):
        texts = (override.text or "").split(",")
        try:
            values = [None if text.strip() == "none" else float(text) for text in texts]
        except ValueError:
            raise InputError(
                f"--{override.key} is {override.text or ''!r}, but must be a number, or several with a comma between"
            ) from None
        given[override.key] = list(dict.fromkeys(values))
    return given


def read_steps(text: str) -> list[int]:
    """`1-10,40` -> 1 to 10, and 40."""
    steps: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last - first > 1_000_000:
            raise InputError(f"--steps is {text!r}, but must be steps or ranges of them, e.g. 1-10,40")
        steps.update(range(first, last + 1))
    return sorted(steps)


def read_corrections(texts: list[str]) -> list[RolloutCorrection]:
    """`tis`, `tis.cap=2`, `mis.low=0.5,high=3`; `none` alone for no correction."""
    from dinghai.objective.correction import build_correction

    if texts == ["none"]:
        return []
    named: dict[str, dict[str, float]] = {}
    for text in texts:
        name, dot, settings = text.partition(".")
        values = named.setdefault(name, {})
        for setting in settings.split(",") if dot else []:
            key, equals, number = setting.partition("=")
            try:
                values[key.strip()] = float(number if equals else "")
            except ValueError:
                raise InputError(
                    f"--correction is {text!r}, but must be a name with or without a parameter, e.g. tis.cap=2"
                ) from None
    return [build_correction(name, **values) for name, values in named.items()]


def _checked_file(option: str, text: str, endings: tuple[str, ...]) -> Path:
    """Refused before any work is done for it."""
    path = Path(text)
    if path.suffix not in endings:
        raise InputError(f"{option} is {text!r}, but must end in {' or '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} is {text!r}, but there is no folder {str(path.parent)!r}")
    return path
