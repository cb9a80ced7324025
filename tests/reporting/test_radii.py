"""The radii that CLUSTER.AUTO_EPS compared, as a file and as a chart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastreid_ice import InputError
from fastreid_ice.core import EpsSweep
from fastreid_ice.reporting.radii import radii_chart, save_radii


def test_the_chart_says_what_was_chosen(tmp_path: Path) -> None:
    sweep = EpsSweep(
        eps=np.array([0.2, 0.45, 0.7]),
        expected_f=np.array([0.1, 0.625, 0.3]),
        num_clusters=np.array([9, 5, 1]),
        noise_share=np.array([0.8, 0.25, 0.0]),
        largest=np.array([4, 12, 99]),
    )
    save_radii(tmp_path / "radii.csv", sweep)
    assert (tmp_path / "radii.csv").read_text() == (
        "eps,expected_f,num_clusters,noise_share,largest\n0.2,0.1,9,0.8,4\n0.45,0.625,5,0.25,12\n0.7,0.3,1,0,99\n"
    )
    chart = radii_chart(tmp_path / "radii.csv")
    assert chart.words == (
        "expected F-measure rose from 0.1 at radius 0.2 to 0.3 at radius 0.7, highest at 0.625 at radius 0.45; "
        "share of noise fell from 0.8 at radius 0.2 to 0 at radius 0.7. Chosen: radius 0.45."
    )
    assert "share of noise, radius 0.45: 0.25" in chart.svg and ">chosen<" in chart.svg


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "No such file"),
        ("", "is not eps,expected_f,num_clusters,noise_share,largest"),
        ("eps,expected_f,num_clusters,noise_share,largest\n0.2,much,9,0.8,4\n", "could not convert string to float"),
        ("a,b,c,d,e\n1,2,3,4,5\n", "its first line must be eps,expected_f,num_clusters,noise_share,largest"),
        ("eps,expected_f,num_clusters,noise_share,largest\n", "is not eps"),
    ],
)
def test_another_file_is_one_sentence(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "radii.csv").write_text(content)
    with pytest.raises(InputError, match=f"^.*radii.csv.*{sentence}"):
        radii_chart(tmp_path / "radii.csv")
