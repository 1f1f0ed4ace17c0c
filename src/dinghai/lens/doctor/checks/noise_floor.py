"""Check that the rule's bounds lie beyond what two evaluations of the same weights differ by. Shapes: N tokens, n
stopped ones, X values of the noise."""

from __future__ import annotations

import numpy as np

from dinghai.lens.doctor.case import Case
from dinghai.lens.doctor.check import Check, Threshold
from dinghai.lens.doctor.finding import Evidence, Finding, Grade, Place
from dinghai.lens.noise import engine_apart
from dinghai.lens.regions import REGIONS
from dinghai.lens.tokens import Tokens
from dinghai.lens.words import counted, percent

_WITHIN = Threshold(
    0.95, "share of the tokens, or sequences, that the noise alone takes less far than the nearest bound", "statistics"
)
_BY_CHANCE = Threshold(
    0.25, "of the stops; at most half can be, since what lies on a bound falls to either side", "arithmetic"
)
_LEAST_STOPS = Threshold(50, "stops from which on their share is known to a few percent", "statistics")


def _epsilon_in_noise(case: Case) -> Finding | None:
    noise, bound = case.noise, case.nearest_bound
    if noise is None or bound is None:
        return None
    apart = engine_apart(case.folder, case.config, case.steps[:1])
    noise_X = np.sort(np.abs(apart.difference_X)) if apart is not None else np.zeros(0)
    stops, by_chance = _stops_by_chance(case, noise_X) if len(noise_X) else (0, 0.0)
    many_by_chance = stops >= _LEAST_STOPS.value and by_chance >= _BY_CHANCE.value * stops
    if bound > noise.q95 and not many_by_chance:
        return None
    differ = Evidence(
        f"with the same weights the engine and the trainer differ by up to {noise.q95:.2g} in log π on 95% of the "
        f"{noise.of} (median {noise.median:.2g}), and the nearest bound of the rule is {bound:.2g} from r = 1 in log r",
        Place(step=case.steps[0]),
    )
    if _only_the_engine_is_coarse(case):
        return _of_the_engine(case, differ)
    evidence = [differ]
    if stops:
        evidence.append(
            Evidence(
                f"of {counted(stops, 'stop')} in the steps looked at, noise of that size alone would have let "
                f"{percent(by_chance / stops)} pass (half is the most that chance can do)"
            )
        )
    beyond = float((noise_X > bound).mean()) if len(noise_X) else 0.0
    return Finding(
        check="epsilon-in-noise",
        grade=Grade.INVALID,
        share=max(beyond, by_chance / stops if stops else 0.0),
        title="The rule's bounds lie within the noise",
        evidence=tuple(evidence),
        cause="What passes a bound does so partly by chance: by rounding, not because an update moved it",
        fix=_fix(case),
        view="clip",
    )


def _only_the_engine_is_coarse(case: Case) -> bool:
    """Whether log π_new and log π_old are both the trainer's, in more bits than the engine has: its rounding is in
    neither."""
    engine = case.setting("rollout.dtype")
    own = case.setting("update.shortcuts.old_log_probs") in ("score", "first-update")
    return own and engine == "bfloat16" and case.setting("model.dtype") == "float32"


def _of_the_engine(case: Case, differ: Evidence) -> Finding:
    return Finding(
        check="epsilon-in-noise",
        grade=Grade.NOTE,
        share=1.0,
        title="The engine is less exact than the rule's bounds are narrow",
        evidence=(differ,),
        cause="The ratio is of the trainer's own log-probs, so the engine's rounding stops nothing. But tokens come "
        "from a policy that is further from the trainer's than the rule lets it move",
        fix='try rollout.dtype = "float32", or wider bounds (objective.eps_low, objective.eps_high)',
        view="clip",
    )


def _fix(case: Case) -> str:
    low = [name for name in ("model.dtype", "rollout.dtype") if case.setting(name) == "bfloat16"]
    wider = "try wider bounds (objective.eps_low, objective.eps_high)"
    return f"{wider}, or float32 in {' and '.join(low)}" if low else f"{wider}; `dinghai epsilon` says how wide"


def _stops_by_chance(case: Case, noise_X: np.ndarray) -> tuple[int, float]:
    """Stopped tokens of the steps that are looked at, and how many of them noise alone would have let pass.

    noise_X: sizes, ascending. Of a token at a distance m beyond its bound noise takes away more than m, to the side of
    the bound, with half the probability of |noise| > m. The recorded ratio has noise of its own: this is an estimate.
    """
    stops, by_chance = 0, 0.0
    for step in case.steps:
        tokens = case.tokens(step)
        if tokens is None:
            continue
        margin_n = _margins(case, tokens)
        stops += len(margin_n)
        further_n = len(noise_X) - np.searchsorted(noise_X, margin_n, side="right")
        by_chance += float(further_n.sum()) / len(noise_X) / 2
    return stops, by_chance


def _margins(case: Case, tokens: Tokens) -> np.ndarray:
    """[n] float64, how far beyond its bound in log r each stopped token lies: the nearest that borders its region."""
    margins = [np.zeros(0)]
    boundaries = (case.rule_facts or {}).get("boundaries", [])
    for sign in (1, -1):
        for region in range(len(REGIONS)):
            here_N = tokens.stopped & (tokens.region == region) & (np.sign(tokens.advantage) == sign)
            places = [
                float(bound["log_ratio"])
                for bound in boundaries
                if bound["advantage"] == sign and REGIONS[region] in (bound["below"], bound["above"])
            ]
            if places and here_N.any():
                far = np.abs(tokens.log_ratio[here_N][:, None].astype(np.float64) - np.array(places))
                margins.append(far.min(1))
    found_n = np.concatenate(margins)
    return found_n[np.isfinite(found_n)]


CHECKS = (
    Check(
        "epsilon-in-noise",
        "The rule's bounds lie within what two evaluations of the same weights differ by.",
        {"within": _WITHIN, "by chance": _BY_CHANCE, "stops": _LEAST_STOPS},
        _epsilon_in_noise,
        of_tokens=True,
    ),
)
