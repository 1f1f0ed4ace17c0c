"""The regions of the clip and the effects of a rule, in words. Their names are those of the trace and the metrics."""

from __future__ import annotations

# name -> what happened to its tokens, short enough for a legend
REGION_MEANING = {
    "inside": "the ratio is within the band: the ordinary step",
    "overshoot": "good tokens already pushed far enough: stopped",
    "relapse": "bad tokens that became likelier: corrected at full force",
    "forgotten": "good tokens that became rarer: pulled back gently",
    "escaped": "bad tokens already left behind: stopped",
    "dual": "bad tokens that became far too likely: stopped by the dual clip",
    "no_signal": "advantage 0: all completions of the prompt scored alike",
    "masked": "not trained on: prompt, padding, tool output",
}

# name -> what the rule did to the gradient that the token would have had without it
EFFECT_MEANING = {
    "kept": "the gradient as without the rule",
    "attenuated": "a smaller gradient",
    "amplified": "a larger gradient",
    "stopped": "no gradient at all",
    "reversed": "a gradient the other way",
    "none": "no gradient to act on",
}

REGIONS = list(REGION_MEANING)
EFFECTS = list(EFFECT_MEANING)


def region_name(stored: str) -> str:
    """The name as the metrics and pages write it: OVERSHOOT -> overshoot."""
    return stored.lower()
