"""Curves are drawn where their values are, and the words describe them correctly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fastreid_ice.reporting.chart import bar_chart, draw_curves, line_chart, mean_curve
from support import ROOT

TEXTS = {"title": "", "x_label": "", "y_label": ""}


def curve_pixels(path: Path, curve: int) -> np.ndarray:
    """(x, y) of the pixels with the colour of the first (blue) or second (orange) curve, left of the names."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    grid = (picture == 0xDD).all(2)
    right = np.flatnonzero(grid[grid.sum(1).argmax()]).max()
    warmth = (picture[:, :, 0] - picture[:, :, 2])[:, : right + 8]
    return np.argwhere((warmth < -60, warmth > 150)[curve])[:, ::-1]


def test_mean_over_the_runs_that_got_there() -> None:
    assert mean_curve([[(0, 1.0), (1, 2.0)], [(0, 3.0)]]) == [(0, 2.0), (1, 2.0)]


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
    # A tenth of the range in x is half of its decades, and 10 is two of four decades above 0.1.
    np.testing.assert_allclose(middle, (first + last) / 2, atol=1)
    assert last[0] - first[0] > 500 and first[1] - last[1] > 300


def test_nothing_to_draw_or_nowhere_to_draw_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no curve has a point"):
        draw_curves({"none": [[]]}, tmp_path / "none.png", **TEXTS)
    with pytest.raises(ValueError, match="logarithmic axes need positive values"):
        draw_curves({"zero": [[(1, 0.0)]]}, tmp_path / "zero.png", log=True, **TEXTS)
    assert not list(tmp_path.iterdir())


def test_a_picture_holds_its_words_and_nothing_of_the_day(tmp_path: Path) -> None:
    curves = {"ice $x$": [[(0, 40.0), (5, 61.0), (12, 60.0)], [(0, 44.0), (5, 63.0), (12, 62.0)]], "flat": [[(0, 3.0)]]}
    texts = {"title": "mAP over training", "x_label": "epochs", "y_label": "mAP"}
    for name in ("a.png", "b.png"):
        draw_curves(curves, tmp_path / name, **texts)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    words = (
        "ice $x$ rose from 42 at 0 epochs to 61 at 12 epochs, highest at 62 at 5 epochs; flat stood at 3 at 0 epochs."
    )
    assert Image.open(tmp_path / "a.png").text == {"Title": texts["title"], "Description": f"mAP over epochs: {words}"}


def test_a_chart_of_a_page_in_words_and_tips() -> None:
    name = '<b>&"$x'
    chart = line_chart(
        {name: [(0, 48.06), (1, 30.0), (2, 78.6)], "fixed": [(1, 1234.0), (2, 1234.0)]},
        title="Evaluation",
        marks={1.5: "stage 2"},
    )
    assert chart.words == (
        f"{name} rose from 48.1 before training to 78.6 after epoch 2, lowest at 30 after epoch 1; "
        "fixed stood at 1,234 after epoch 1 and after epoch 2. Stage 2 began after epoch 1."
    )
    drawing = ElementTree.fromstring(chart.svg)
    texts = [element.text for element in drawing.iter() if element.tag.endswith("}text")]
    assert {name, "fixed", "stage 2", "epoch"} <= set(texts)
    tips = [element.text for element in drawing.iter() if element.tag.endswith("}title")]
    assert tips == [f"{name}, epoch {text}" for text in ("0: 48.06", "1: 30", "2: 78.6")] + [
        "fixed, epoch 1: 1234",
        "fixed, epoch 2: 1234",
    ]


def test_bars_in_words_and_tips() -> None:
    chart = bar_chart([("2", 1), ("3", 40), ("4–5", 9)], title="Clusters by size", unit="images", things="clusters")
    assert chart.words == "40 of 50 clusters have 3 images, the most common size; the smallest have 2, the largest 4–5."
    drawing = ElementTree.fromstring(chart.svg)
    bars = [element for element in drawing.iter() if any(child.tag.endswith("}title") for child in element)]
    assert [bar[-1].text for bar in bars] == ["2 images: 1 clusters", "3 images: 40 clusters", "4–5 images: 9 clusters"]
    heights = [np.ptp([float(y) for y in bar[0].get("d").split()[2::3]]) for bar in bars]
    np.testing.assert_allclose(np.array(heights) / heights[1], [1 / 40, 1, 9 / 40], atol=0.001)


def test_charts_of_one_page_share_no_id() -> None:
    """Otherwise one would be clipped to the area of another."""
    charts = [line_chart({"a": [(1, 1.0), (2, 2.0)]}, title=title) for title in ("One", "Two")]
    charts.append(bar_chart([("2", 1)], title="Bars", unit="images", things="clusters"))
    ids = [element.get("id") for chart in charts for element in ElementTree.fromstring(chart.svg).iter()]
    ids = [name for name in ids if name]
    assert ids and len(set(ids)) == len(ids)
    assert charts[0] == line_chart({"a": [(1, 1.0), (2, 2.0)]}, title="One"), "the same each time"
    assert not any("<style" in chart.svg or "<metadata" in chart.svg for chart in charts)


def test_a_users_settings_change_nothing_and_stay(tmp_path: Path) -> None:
    import matplotlib

    draw_curves({"up": [[(0, 0.0), (10, 10.0)]]}, tmp_path / "plain.png", **TEXTS)
    with matplotlib.rc_context({"lines.linestyle": ":", "font.size": 30, "savefig.dpi": 10}):
        draw_curves({"up": [[(0, 0.0), (10, 10.0)]]}, tmp_path / "set.png", **TEXTS)
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "set.png").read_bytes()


def test_libraries_that_few_runs_need_wait_until_then() -> None:
    imports = "import sys, fastreid_ice.commands.report, fastreid_ice.commands.compare"
    code = f"{imports}; print({{'matplotlib.figure', 'matplotlib.pyplot', 'timm'}} & sys.modules.keys())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
