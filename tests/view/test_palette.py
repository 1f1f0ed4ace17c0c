"""The palette can be read: by eyes of every kind, in both themes, as areas, as tints and in a grey print.

Colour vision is simulated with the matrices of Machado, Oliveira and Fernandes (2009) at full severity, in linear RGB;
differences are CIEDE2000, whose unit is about what a trained eye can just tell.
"""

from __future__ import annotations

import itertools
import math
import re

import pytest

from dinghai.lens.regions import REGIONS
from dinghai.view.palette import DARK, DIVERGING, LIGHT, SEQUENTIAL, SERIES, palette_css

Colour = tuple[float, float, float]

VISION = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
PLACES = ["inside", "overshoot", "relapse", "forgotten", "escaped", "dual", "dropped"]
SEEN = [(vision, a, b) for vision in VISION for a, b in itertools.combinations(PLACES, 2)]


@THEMES
def test_regions_are_told_apart_by_every_kind_of_eye(theme: dict[str, str]) -> None:
    close = {
        (vision, a, b): apart
        for vision, a, b in SEEN
        if (apart := difference(seen(theme[a], vision), seen(theme[b], vision))) < 10
    }
    assert not close


@THEMES
def test_tokens_of_two_regions_are_told_apart_by_their_tint(theme: dict[str, str]) -> None:
    """A tint has less room: tokens lie close together, so half of the difference between areas is asked for."""
    tinted = {name: tint(theme, name) if name != "inside" else theme["card"] for name in PLACES}
    close = {
        (vision, a, b): apart
        for vision, a, b in SEEN
        if (apart := difference(seen(tinted[a], vision), seen(tinted[b], vision))) < 5
    }
    assert not close


@THEMES
def test_regions_differ_in_a_grey_print(theme: dict[str, str]) -> None:
    """Those of the clip and `inside`, by lightness alone; hatching tells the stopped ones besides."""
    lightness = sorted(lab(linear(rgb(theme[name])))[0] for name in PLACES if name != "dropped")
    assert min(b - a for a, b in itertools.pairwise(lightness)) >= 3


@THEMES
def test_series_are_told_apart(theme: dict[str, str]) -> None:
    for vision in VISION:
        for a, b in itertools.combinations(SERIES, 2):
            assert difference(seen(theme[a], vision), seen(theme[b], vision)) >= 10, (vision, a, b)


@THEMES
def test_text_is_legible_on_everything_it_stands_on(theme: dict[str, str]) -> None:
    grounds = {name: theme[name] for name in ["paper", "card", "no_signal", *SEQUENTIAL, *DIVERGING]}
    grounds |= {f"tint of {name}": tint(theme, name) for name in PLACES}
    low = {name: ratio for name, ground in grounds.items() if (ratio := contrast(theme["ink"], ground)) < 4.5}
    assert not low
    for text in ("soft", "accent", "bad"):
        for ground in ("paper", "card"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    assert contrast(theme["soft"], theme["no_signal"]) >= 4.5
    assert contrast(theme["paper"], theme["ink"]) >= 4.5  # a tooltip


@THEMES
def test_lines_and_areas_stand_out_from_the_card(theme: dict[str, str]) -> None:
    """WCAG's 3:1 for graphics. `inside` is the ground on which the others are seen, and is meant to be quiet."""
    for name in [*PLACES[1:], *SERIES]:
        assert contrast(theme[name], theme["card"]) >= 3, name
    assert contrast(theme["inside"], theme["card"]) >= 1.6


@THEMES
@pytest.mark.parametrize("scale", [SEQUENTIAL, DIVERGING[:4][::-1], DIVERGING[3:]], ids=["seq", "negative", "positive"])
def test_scales_run_evenly_from_nothing_to_much(theme: dict[str, str], scale: list[str]) -> None:
    """Each step shows in every kind of eye, and lightness runs one way."""
    lightness = [lab(linear(rgb(theme[name])))[0] for name in scale]
    assert lightness in (sorted(lightness), sorted(lightness, reverse=True))
    for vision in VISION:
        for a, b in itertools.pairwise(scale):
            assert difference(seen(theme[a], vision), seen(theme[b], vision)) >= 3.5, (vision, a, b)


@THEMES
def test_the_two_ends_of_the_diverging_scale_differ_for_every_kind_of_eye(theme: dict[str, str]) -> None:
    for vision in VISION:
        for a, b in zip(DIVERGING[:3], DIVERGING[:3:-1], strict=True):
            assert difference(seen(theme[a], vision), seen(theme[b], vision)) >= 10, (vision, a, b)


def test_css_has_every_colour_in_both_themes_and_lets_a_reader_choose() -> None:
    css = palette_css()
    light, system, chosen = css.strip().splitlines()
    assert light.startswith(":root{")
    assert system.startswith("@media (prefers-color-scheme: dark){:root:not([data-theme=light]){")
    assert chosen.startswith(":root[data-theme=dark]{")
    assert set(LIGHT) == set(DARK) >= {*REGIONS, *SERIES, *SEQUENTIAL, *DIVERGING}
    for line, colours in ((light, LIGHT), (system, DARK), (chosen, DARK)):
        assert dict(re.findall(r"--([\w]+):([^;]+);", line)) == colours
        assert line.count("{") == line.count("}")


# --- colour science --------------------------------------------------------------------------------------------------


def rgb(text: str) -> Colour:
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def linear(colour: Colour) -> Colour:
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return r, g, b


def luminance(colour: str) -> float:
    r, g, b = linear(rgb(colour))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    """WCAG 2."""
    dark, light = sorted([luminance(a), luminance(b)])
    return (light + 0.05) / (dark + 0.05)


def tint(theme: dict[str, str], name: str) -> str:
    """As `color-mix(in srgb, colour tint, transparent)` over a card gives it."""
    share = float(theme["tint"].rstrip("%")) / 100
    mixed = [share * a + (1 - share) * b for a, b in zip(rgb(theme[name]), rgb(theme["card"]), strict=True)]
    return "#" + "".join(f"{round(255 * c):02x}" for c in mixed)


def seen(colour: str, vision: str) -> Colour:
    """CIELAB of the colour as that eye sees it."""
    light = linear(rgb(colour))
    r, g, b = (min(1, max(0, sum(m * c for m, c in zip(row, light, strict=True)))) for row in VISION[vision])
    return lab((r, g, b))


def lab(colour: Colour) -> Colour:
    """CIELAB under D65, from linear RGB."""
    r, g, b = colour
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    fx, fy, fz = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def difference(one: Colour, other: Colour) -> float:
    """CIEDE2000 of two CIELAB colours."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    chroma = (math.hypot(a1, b1) + math.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * math.sqrt(chroma**7 / (chroma**7 + 25**7))
    c1, c2 = math.hypot(a1 * stretch, b1), math.hypot(a2 * stretch, b2)
    h1 = math.degrees(math.atan2(b1, a1 * stretch)) % 360
    h2 = math.degrees(math.atan2(b2, a2 * stretch)) % 360
    turn = 0.0 if c1 * c2 == 0 else (h2 - h1 + 180) % 360 - 180
    hue = h1 + h2 if c1 * c2 == 0 else (h1 + turn / 2) % 360
    dl, dc, dh = l2 - l1, c2 - c1, 2 * math.sqrt(c1 * c2) * math.sin(math.radians(turn / 2))
    light, mean = (l1 + l2) / 2, (c1 + c2) / 2
    t = (
        1
        - 0.17 * math.cos(math.radians(hue - 30))
        + 0.24 * math.cos(math.radians(2 * hue))
        + 0.32 * math.cos(math.radians(3 * hue + 6))
        - 0.20 * math.cos(math.radians(4 * hue - 63))
    )
    sl = 1 + 0.015 * (light - 50) ** 2 / math.sqrt(20 + (light - 50) ** 2)
    sc, sh = 1 + 0.045 * mean, 1 + 0.015 * mean * t
    blue = math.radians(60 * math.exp(-(((hue - 275) / 25) ** 2)))
    rotation = -2 * math.sqrt(mean**7 / (mean**7 + 25**7)) * math.sin(blue)
    return math.sqrt((dl / sl) ** 2 + (dc / sc) ** 2 + (dh / sh) ** 2 + rotation * (dc / sc) * (dh / sh))


# Pairs of CIELAB colours from the paper that tests implementations (Sharma, Wu and Dalal, 2005)
@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
        ((50.0, -1.0, 2.0), (50.0, 0.0, 0.0), 2.3669),
        ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
        ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
        ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_measure_itself(one: Colour, other: Colour, expected: float) -> None:
    assert difference(one, other) == pytest.approx(expected, abs=1e-4)
    assert difference(other, one) == pytest.approx(expected, abs=1e-4)
