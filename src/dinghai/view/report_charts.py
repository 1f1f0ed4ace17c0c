"""Which curves the report shows, what each is called, and their points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dinghai.lens.metrics_file import Metrics
from dinghai.lens.regions import REGIONS
from dinghai.lens.series import mean_share, weighted_mean
from dinghai.text import safe

Row = dict[str, Any]
Chart = dict[str, Any]

POINTS_AT_MOST = 400  # of a curve: more than a card has pixels for

_BETA = "Weight of the KL to the reference"
_NATS = "nats a token with a signal"  # the others need not be scored, and are left out of such means

# title, note, whether the values are shares, [(name, key)]
_CURVES: list[tuple[str, str, bool, list[tuple[str, str]]]] = [
    ("Held-out accuracy", "problems kept out of training, greedy decoding", True, [("accuracy", "held_out/accuracy")]),
    ("Reward", "mean of the step's completions", False, [("reward", "reward/mean")]),
    (
        "Stopped, and outside the band",
        "of the tokens with a signal: gradient exactly zero; ratio beyond the rule's bounds",
        True,
        [("stopped", "clip/stopped_fraction"), ("outside the band", "clip/band_fraction")],
    ),
    ("KL(old‖new)", f"{_NATS}, k3 estimate, mean over the step's updates", False, [("KL", "clip/kl_old_new_k3")]),
    ("Entropy", f"{_NATS}, of the policy that samples", False, [("entropy", "entropy")]),
    ("Completion length", "tokens, mean of the step", False, [("length", "completion/length_mean")]),
    (
        "Lost samples",
        "groups in which every advantage was 0; completions cut at the longest length",
        True,
        [("groups without signal", "groups/no_signal_fraction"), ("cut", "completion/truncated_fraction")],
    ),
    (
        "Gradient norm",
        "before it is clipped to update.max_grad_norm",
        False,
        [("norm", "grad_norm_mean"), ("norm", "grad_norm")],
    ),
    ("KL to the reference", "nats a token, k1 estimate", False, [("KL", "kl_ref_k1")]),
    ("KL to the reference", "nats a token, k2 estimate", False, [("KL", "kl_ref_k2")]),
    ("KL to the reference", "nats a token, k3 estimate", False, [("KL", "kl_ref_k3")]),
    (_BETA, "beta, as its controller sets it", False, [("beta", "kl_ref_beta")]),
    (
        "Furthest token",
        "largest |log π_new − log π_old| of a token with a signal in the step",
        False,
        [("furthest", "clip/log_ratio_abs_max")],
    ),
    (
        "Effective sample size",
        "share of the tokens with a signal that their ratios leave: 1 where all agree",
        True,
        [("of the ratios", "clip/ess_fraction"), ("old against sampler", "correction/ess_fraction")],
    ),
    (
        "Rollout correction",
        "share of the tokens with a signal; sequences: all of whose tokens with a signal are dropped",
        True,
        [
            ("tokens dropped", "correction/dropped_fraction"),
            ("truncated", "correction/truncated_fraction"),
            ("sequences dropped", "correction/dropped_sequences_fraction"),
        ],
    ),
    (
        "KL(sampler‖old)",
        f"{_NATS}, k3 estimate: how far the engine and the trainer disagree",
        False,
        [("KL", "correction/kl_sampler_old_k3")],
    ),
    ("Critic", "explained variance of the returns: 1 is perfect", False, [("critic", "critic/explained_variance")]),
    (
        "Time",
        "seconds a step",
        False,
        [("step", "seconds/step"), ("rollout", "seconds/rollout"), ("update", "seconds/update")],
    ),
]

# Of charts with several curves: what each is, for a page that shows it alone.
_OF_ITS_OWN = {
    "clip/stopped_fraction": "of the tokens with a signal: gradient exactly zero",
    "clip/band_fraction": "of the tokens with a signal: ratio beyond the rule's bounds",
    "groups/no_signal_fraction": "of the groups: every advantage was 0",
    "completion/truncated_fraction": "of the completions: cut at the longest length",
}

_OUTSIDE = ["overshoot", "relapse", "forgotten", "escaped", "dual", "dropped"]


def curves(metrics: Metrics) -> list[Chart]:
    """The line charts, those that have a point."""
    parts = sorted({key for row in metrics.training for key in row if _is_reward_part(key)})
    charts = []
    for title, note, share, named in _CURVES:
        if title == "Reward" and len(parts) > 1:
            named = [*named, *((safe(part.removeprefix("reward/").removesuffix("/mean")), part) for part in parts)]
        series = [one for name, key in named if (one := _series(name, metrics.rows, key))["points"]]
        if title == _BETA and not _varies(series):
            continue  # it stands among the settings
        if series:
            charts.append({"title": title, "note": note, "share": share, "series": series})
    return charts


def region_charts(metrics: Metrics) -> list[Chart]:
    """The stacked areas: where the tokens were, and where gradient was removed."""
    rows = metrics.training
    fraction, removed = "clip/region/{}_fraction", "clip/gradient_removed/{}"
    if not any(removed.format("total") in row for row in rows):
        removed = "clip/weight_removed/{}"
    wanted = [
        ("Every token by region", "share of the tokens in the loss", fraction, [*_OUTSIDE, "inside", "no_signal"], 1.0),
        ("Outside the band, or dropped", "the same, enlarged", fraction, _OUTSIDE, None),
        ("Gradient removed by region", "share of the gradient that all tokens would have had", removed, REGIONS, None),
    ]
    charts = []
    for title, note, key, names, top in wanted:
        series = [_series(name, rows, key.format(name), spread=False) for name in names]
        series = [one for one in series if any(_above_zero(y) for _, y in one["points"])]
        if series:
            charts.append({"title": title, "note": note, "share": True, "top": top, "series": series})
    return charts


def removed_by_step(metrics: Metrics) -> dict[int, float]:
    """Step -> the share of its gradient that the rule removed, of the steps whose record says it."""
    keys = ("clip/gradient_removed/total", "clip/weight_removed/total")
    found = (
        (row["step"], next((row[key] for key in keys if _is_number(row.get(key))), None)) for row in metrics.training
    )
    return {step: value for step, value in found if value is not None and math.isfinite(value)}


def update_charts(metrics: Metrics) -> list[Chart]:
    """The bars by update index within a batch: how the policy leaves the one that sampled.

    The first two show by update what `region_charts` shows by step, region upon region. A chart without a bar is left
    out: with one update a batch, no token leaves the policy that sampled it.
    """
    by_index = _rows_by_update(metrics)
    entries = [entry for rows in by_index.values() for entry in rows]
    removed = "gradient_removed" if any("gradient_removed/total" in entry for entry in entries) else "weight_removed"
    fractions = [(name, f"region/{name}_fraction") for name in _OUTSIDE]
    shares = [(name, f"{removed}/{name}") for name in REGIONS]
    measures = [("stopped", "stopped_fraction"), ("outside the band", "band_fraction")]
    wanted: list[tuple[str, str, bool, bool, str, list[tuple[str, str]]]] = [
        ("Outside the band, or dropped, by update", "share of the tokens in the loss", True, True, "tokens", fractions),
        ("Gradient removed, by update", "share of the update's gradient", True, True, "signal_tokens", shares),
        ("Stopped, and outside the band, by update", "of tokens with a signal", True, False, "signal_tokens", measures),
        ("KL(old‖new), by update", f"{_NATS}, k3 estimate", False, False, "signal_tokens", [("KL", "kl_old_new_k3")]),
    ]
    charts = []
    for title, note, share, stacked, weight, named in wanted:
        series = [
            {"name": name, "values": [_number(_mean(rows, key, weight)) for rows in by_index.values()]}
            for name, key in named
        ]
        shown = [one for one in series if any(v is not None and _above_zero(v) for v in one["values"])]
        if shown:
            names = list(update_names(metrics).values())
            chart = {"title": title, "note": note, "share": share, "labels": names, "stacked": stacked}
            charts.append({**chart, "series": shown if stacked else series})
    return charts


def _mean(rows: Sequence[Row], key: str, weight: str) -> float | None:
    return mean_share(rows, key, weight) if "_removed/" in key else weighted_mean(rows, key, weight)


def update_names(metrics: Metrics) -> dict[int, str]:
    """Update index -> its name, with the epoch and minibatch where the record tells them. In names all count from 1."""
    names = {}
    for index, rows in _rows_by_update(metrics).items():
        epoch, minibatch = rows[0].get("epoch"), rows[0].get("minibatch")
        place = ""
        if isinstance(epoch, int) and isinstance(minibatch, int):
            place = f" (epoch {epoch + 1}, minibatch {minibatch + 1})"
        names[index] = f"update {index + 1}{place}"
    return names


def _rows_by_update(metrics: Metrics) -> dict[int, list[Row]]:
    """Update index -> its entries over all steps."""
    by_index: dict[int, list[Row]] = {}
    for row in metrics.training:
        for entry in row.get("by_update") or []:
            by_index.setdefault(int(entry["update"]), []).append(entry)
    return dict(sorted(by_index.items()))


def _series(name: str, rows: Sequence[Row], key: str, spread: bool = True) -> dict[str, Any]:
    """A curve. Where a point stands for several steps, `every` says for how many, and `last` what the last step had."""
    values = [row[key] for row in rows if _is_number(row.get(key))]
    every = _thinning(len(values))
    thinned = {"every": every, "last": _number(values[-1])} if every > 1 else {}
    note = {"note": _OF_ITS_OWN[key]} if key in _OF_ITS_OWN else {}
    return {"name": name, "points": points(rows, key, spread), **thinned, **note}


def points(rows: Sequence[Row], key: str, spread: bool = True) -> list[list[Any]]:
    """[step, value] of each row that has the metric; of long runs [first step, mean, lowest, highest] of several rows.

    So no spike is lost. Of several rows that are not finite the first is kept, by itself.

    Args:
        spread: False: without lowest and highest.
    """
    found = [(row["step"], row[key]) for row in rows if _is_number(row.get(key))]
    every = _thinning(len(found))
    if every == 1:
        return [[step, _number(value)] for step, value in found]
    out: list[list[Any]] = []
    for start in range(0, len(found), every):
        out += _merged(found[start : start + every], spread)
    return out


def _thinning(count: int) -> int:
    return max(1, math.ceil(count / POINTS_AT_MOST))


def _merged(found: list[tuple[int, float]], spread: bool) -> list[list[Any]]:
    """The points that stand for some rows: one for all that are finite, one for the first that is not."""
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    lost = [[step, _number(value)] for step, value in found if not math.isfinite(value)][:1]
    if not finite:
        return lost
    values = [value for _, value in finite]
    range_of = [_number(min(values)), _number(max(values))] if spread else []
    mean = [finite[0][0], _number(math.fsum(values) / len(values)), *range_of]
    return sorted([mean, *lost], key=lambda point: point[0])


def _number(value: float | None) -> float | str | None:
    """Five significant digits; what is not finite by its name, since JSON has no number for it."""
    if value is None:
        return None
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.5g}")


def _above_zero(value: Any) -> bool:
    return isinstance(value, str) or value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _varies(series: list[dict[str, Any]]) -> bool:
    return len({point[1] for one in series for point in one["points"]}) > 1


def _is_reward_part(key: str) -> bool:
    return key.startswith("reward/") and key.endswith("/mean") and key != "reward/mean"
