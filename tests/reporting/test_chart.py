"""Curves land where their values say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastreid_ice.reporting.chart import decades, draw_curves, mean_curve
from fastreid_ice.reporting.svg import ticks

TEXTS = {"title": "", "x_label": "", "y_label": ""}


def curve_pixels(path: Path, curve: int) -> np.ndarray:
    """(x, y) of what has the colour of the first (blue) or second (orange) curve inside the axes."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)[60:490, 60:720]
    warmth = picture[:, :, 0] - picture[:, :, 2]
    return np.argwhere((warmth < -60, warmth > 150)[curve])[:, ::-1] + 60


def test_mean_over_the_runs_that_got_there() -> None:
    assert mean_curve([[(0, 1.0), (1, 2.0)], [(0, 3.0)]]) == [(0, 2.0), (1, 2.0)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 12, [0, 2, 4, 6, 8, 10, 12]), (41.2, 43.9, [41, 41.5, 42, 42.5, 43, 43.5, 44]), (5, 5, None)],
)
def test_ticks_are_round_and_span_the_data(low: float, high: float, expected: list[float] | None) -> None:
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 9
    if expected:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(10_000, 1_000_000, [1e4, 1e5, 1e6]), (0.3, 20, [0.1, 1, 10, 100]), (5, 5, [1, 10]), (1, 1, [1, 10])],
)
def test_decades_span_the_data(low: float, high: float, expected: list[float]) -> None:
    assert decades(low, high) == pytest.approx(expected)


def test_higher_is_further_up_and_later_further_right(tmp_path: Path) -> None:
    draw_curves({"up": [[(0, 0.0), (10, 10.0)]]}, tmp_path / "up.png", **TEXTS)
    x, y = curve_pixels(tmp_path / "up.png", 0).T
    assert x.max() - x.min() > 550
    assert y[x == x.min()].min() > y[x == x.max()].max() + 300


def test_equal_factors_are_equal_steps_on_logarithmic_axes(tmp_path: Path) -> None:
    """One point at a time, on a curve that fixes the axes at 10 to 1000 and 0.1 to 1000."""
    corners = [(10, 0.1), (1000, 1000)]
    places = []
    for point in [(10, 0.1), (100, 10), (1000, 1000)]:
        draw_curves({"corners": [corners], "point": [[point]]}, tmp_path / "log.png", log=True, **TEXTS)
        places.append(curve_pixels(tmp_path / "log.png", 1).mean(0))
    first, middle, last = places
    # A tenth of the way in x is half of its decades, and 10 is two of four decades above 0.1.
    np.testing.assert_allclose(middle, (first + last) / 2, atol=1)
    assert last[0] - first[0] > 500 and first[1] - last[1] > 300


def test_nothing_to_draw_or_nowhere_to_draw_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curve has a point"):
        draw_curves({"none": [[]]}, tmp_path / "none.png", **TEXTS)
    with pytest.raises(ValueError, match="logarithmic axes need positive values"):
        draw_curves({"zero": [[(1, 0.0)]]}, tmp_path / "zero.png", log=True, **TEXTS)
    assert not list(tmp_path.iterdir())
