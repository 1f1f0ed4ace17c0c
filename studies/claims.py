"""What people are told about the clip, claim by claim, each held against the formula, autograd, the rule or runs.

    python studies/claims.py [--seeds N]      # half a minute, once the cold starts are there

The claims are those of the explainer (`dinghai explain --open`). Write this page last: it quotes the other studies.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from claims_shown import DUAL_CLIP, FALSE, HALF, TRUE, Claim, claims, tokens
from common.figures import look
from common.measures import largest, mean_share_of_gradient, rows_of
from common.page import Finding, Page, Table, lines
from common.results import Measures, Results, read_results
from common.study import STUDIES, Arm, Study, main
from matplotlib.figure import Figure
from single_tokens import EPS, show

from dinghai.view.explain import Words
from dinghai.view.figure_style import WIDE, legend_above, new_figure

# --- runs and other studies ------------------------------------------------------------------------------------------


def measure(folder: Path) -> Measures:
    rows = rows_of(folder)
    firsts = [one["stopped_fraction"] for row in rows for one in row.get("by_update", ())[:1]]
    return {
        "removed_escaped": mean_share_of_gradient(rows, "clip/gradient_removed/escaped"),
        "log_ratio_largest": largest(rows, "log_ratio_abs_max"),
        "stopped_first": max(firsts, default=None),
    }


def _study(name: str) -> str:
    """What another study found, with a link; how to run it, where it has no results yet."""
    path = STUDIES / "results" / f"{name}.json"
    if not path.exists():
        return f"not run yet: `python studies/{name}.py`"
    found = importlib.import_module(name).STUDY.page(read_results(path)).findings
    return f"[{name}]({name}.md): " + "; ".join(f"{f.claim}: {f.outcome}" for f in found)


# --- the page --------------------------------------------------------------------------------------------------------


def findings(found: Sequence[Claim]) -> list[Finding]:
    english, chinese = Words("en"), Words("zh")
    rows = []
    for claim in found:
        parts = [f"{_yes(part.holds)}: {part.found}" for part in claim.parts]
        parts += [claim.remark] if claim.remark else []
        parts += [_study(claim.study)] if claim.study else []
        rows.append(
            Finding(
                f"{english.say(f'claim.{claim.key}')}<br>{chinese.say(f'claim.{claim.key}')}",
                lines(part.says for part in claim.parts) or "an experiment",
                lines(parts),
                f"{english.say(f'verdict.{claim.verdict}')} / {chinese.say(f'verdict.{claim.verdict}')}",
            )
        )
    return rows


def page(results: Results) -> Page:
    found = claims(results)
    count = {verdict: sum(claim.verdict == verdict for claim in found) for verdict in (TRUE, HALF, FALSE)}
    agree = all(token.agrees for shown in tokens().values() for token in shown)
    return Page(
        title="What people are told about the clip",
        question="Which of the things that are said about the clip of PPO and GRPO are true?",
        summary=f"Of {len(found)} claims {count[TRUE]} are true, {count[HALF]} half true, {count[FALSE]} false; the "
        "others take an experiment. The common mistake is to read the objective's value as if it were the gradient: "
        "where the value is constant, the gradient is exactly 0, neither small nor mildly negative.",
        findings=findings(found),
        figure="Value (left) and gradient (right) of one token against its ratio, ε = 0.2: they are different curves. "
        "Dots: by autograd on the formula by hand. Lines: value by hand, and weight as the rule decided.",
        tables=[_tokens_table()],
        literature=[
            "PPO: arXiv 1707.06347, equation 7. GRPO: arXiv 2402.03300, equations 3 and 4. Dual clip: arXiv "
            "1912.09729, equation 5. DAPO: arXiv 2503.14476. GSPO: arXiv 2507.18071. Bounds and entropy: arXiv "
            "2509.26114.",
        ],
        setting=[
            "Single tokens in float64: the formula written out with `torch.min` and `torch.clamp`, its gradient by "
            f"autograd, beside the decision of the rule `ppo`. They agree at every token below: {_yes(agree)}.",
            "A claim is true if all of its parts hold, half true if some do, false if none does.",
            "Where runs are quoted: PPO's clip, four updates a batch, the base of all studies.",
        ],
        notes=[
            "Exactly on a bound the formula has a kink, where autograd on `torch.min` halves the gradient; the rule "
            "takes the side of r = 1, and does not stop the token.",
        ],
    )


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _tokens_table() -> Table:
    rows = [
        [
            f"{token.ratio:g}, {token.advantage:+g}" + (f", c = {DUAL_CLIP:g}" if name == "dual" else ""),
            f"{token.value:.4g}",
            f"{token.gradient:.4g}",
            f"{token.weight:.4g}",
            f"{token.unclipped:.4g}",
            f"`{token.region}`",
            token.effect,
            _yes(token.agrees),
        ]
        for name, shown in tokens().items()
        for token in shown
    ]
    head = ["r, A", "value J", "gradient by autograd", "w of the rule", "without a clip", "region", "effect", "agree"]
    return Table("The tokens that show it, ε = 0.2", head, rows)


def figure(results: Results) -> Figure:
    drawing = new_figure(WIDE, 2.5)
    panels = drawing.subplots(1, 2, sharex=True)
    ratios = [0.02 * k for k in range(1, 101)]
    for place, advantage in enumerate((1, -1)):
        curve = [show(ratio, advantage) for ratio in ratios]
        dots = [token for shown in tokens().values() for token in shown]
        dots = [t for t in dots if t.advantage == advantage and t.ratio <= 2 and t.region != "dual"]
        for axes, by_rule, by_hand in ((panels[0], "value", "value"), (panels[1], "weight", "gradient")):
            values = [getattr(token, by_rule) for token in curve]
            axes.plot(ratios, values, label=f"A = {advantage:+d}", **look(place))
            at = [(t.ratio, getattr(t, by_hand)) for t in dots]
            axes.plot(*zip(*at, strict=True), "o", color=look(place)["color"], markersize=3)
    for axes, title in zip(panels, ("value J", "gradient: weight w of ∇log π"), strict=True):
        axes.set_ylabel(title)
        axes.set_xlabel("ratio r")
        axes.set_xticks([0, 1 - EPS, 1, 1 + EPS, 2])
        axes.grid()
    legend_above(panels[0], panels[0].get_lines()[::2])
    return drawing


STUDY = Study(
    name="claims",
    arms=[Arm("ppo", "PPO", {"objective": {"rule": "ppo"}})],
    measure=measure,
    page=page,
    figure=figure,
    shared={"trace": {"enabled": False}},
    cold_start={},
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
