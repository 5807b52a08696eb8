"""Each figure becomes a picture without a warning, of whatever dataset, and shows what was counted."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest

from factories import make_store, make_trajectory
from trajmill.analysis import FIGURES, style
from trajmill.analysis.base import pick
from trajmill.analysis.files import subjects
from trajmill.analysis.numbers import count
from trajmill.analysis.periodic_table import place
from trajmill.analysis.space_groups import SYSTEMS
from trajmill.analysis.spread import per_number
from trajmill.analysis.style import short
from trajmill.elements import NUMBERS
from trajmill.errors import FigureError

NAMES = [figure.name for figure in FIGURES]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A store of two single frames without forces that differ from 0, stress or a space group."""
    still = make_trajectory("mp-1", n_frames=1, symbols=("Ar",))
    still = replace(still, forces=0 * still.forces, stress=np.full((1, 3, 3), np.nan), space_group=None)
    path = tmp_path_factory.mktemp("bare") / "bare"
    make_store(path, [still, replace(still, task_id="mp-2", trajectory_id="mp-2-pbe")])
    return path


@pytest.fixture(scope="module", params=["samples", "mixed", "published", "bare", "several"])
def counts(request):
    names = ["samples", "mixed", "published", "bare"] if request.param == "several" else [request.param]
    return count(subjects([request.getfixturevalue(name) for name in names]), FIGURES)


def draw(counts, name):
    return next(figure for figure in FIGURES if figure.name == name).draw(counts.tables[name])


def texts(svg):
    return re.findall(r"<title>(.*?)</title>", svg)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_every_dataset(counts, name):
    """Warnings are errors: nothing lies outside a panel, no axis lacks room, no number is not positive."""
    if name in counts.tables:
        from PIL import Image

        figure = draw(counts, name)
        picture = Image.open(io.BytesIO(style.to_png(figure)))
        assert picture.width == round(figure.get_figwidth() * style.DPI)
        pixels = np.asarray(picture.convert("L"))
        assert 0.005 < (pixels < 200).mean() < 0.6, "an empty picture, or a black one"
        assert style.to_svg(figure).rstrip().endswith("</svg>")
    else:
        assert name in counts.left_out


def test_pyplot_is_never_loaded(tmp_path):
    import subprocess
    import sys

    code = "import sys; from trajmill.analysis import FIGURES; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_style_ends_with_the_figure(mixed):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    counts = count(subjects([mixed]), pick(FIGURES, ["energy"]))
    style.to_png(draw(counts, "energy"))
    assert dict(mpl.rcParams) == before


def test_the_same_figure_is_the_same_bytes(mixed):
    counts = count(subjects([mixed]), pick(FIGURES, ["sizes"]))
    assert style.to_svg(draw(counts, "sizes")) == style.to_svg(draw(counts, "sizes"))


def test_elements_shows_each_count(mixed):
    counts = count(subjects([mixed]), pick(FIGURES, ["elements"]))
    figure = draw(counts, "elements")
    panels = {panel.get_title(): panel for panel in figure.axes if panel.get_title()}
    assert list(panels) == ["pbe", "pbesol", "scan", "r2scan"]
    said = texts(style.to_svg(figure))
    assert len(said) == 4 * len(NUMBERS)
    (table,) = counts.tables["elements"].values()
    for row in table.to_pylist():
        assert f"{row['element']}: {row['trajectories']:,} trajectories" in said
        written = [text.get_text() for text in panels[row["functional"]].texts]
        assert written[written.index(row["element"]) + 1] == short(row["trajectories"])


@pytest.mark.parametrize(
    ("symbol", "where"),
    [("H", (1, 1)), ("He", (1, 18)), ("B", (2, 13)), ("Mg", (3, 2)), ("Sc", (4, 3)), ("Xe", (5, 18)), ("Ba", (6, 2)),
     ("La", (8.4, 3)), ("Lu", (8.4, 17)), ("Hf", (6, 4)), ("U", (9.4, 6)), ("Og", (7, 18))],
)  # fmt: skip
def test_places_of_elements(symbol, where):
    assert place(NUMBERS[symbol]) == where


def test_no_two_elements_share_a_place():
    assert len({place(number) for number in NUMBERS.values()}) == len(NUMBERS) == 118


def test_shares_per_decade_add_up(mixed):
    """What is drawn of a distribution is all of it, but for zeros, what is unknown and what is too small."""
    counts = count(subjects([mixed]), pick(FIGURES, ["max_force"]))
    figure = draw(counts, "max_force")
    (table,) = counts.tables["max_force"].values()
    rows = table.to_pylist()
    for steps, source in zip(figure.axes[0].patches[:3], ("alexandria", "mp", "oqmd"), strict=True):
        data = steps.get_data()
        its = [row for row in rows if row["source"] == source and row["sign"] != "unknown"]
        shown = sum(row["frames"] for row in its if row["sign"] == "positive" and row["low"] >= 1e-6)
        all_of_them = sum(row["frames"] for row in its)
        assert (data.values * np.diff(np.log10(data.edges))).sum() == pytest.approx(shown / all_of_them)
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_several_datasets_are_laid_over_each_other(mixed, samples):
    counts = count(subjects([mixed, samples]), pick(FIGURES, ["max_force", "stress"]))
    figure = draw(counts, "max_force")
    assert [text.get_text().partition(":")[0] for text in figure.legends[0].texts] == ["mixed", "store"]
    svg = style.to_svg(draw(counts, "stress"))
    assert set(re.findall(r'data-line="(.*?)"', svg)) == {"mixed", "store"}
    compression, tension, *_ = draw(counts, "stress").axes
    assert (compression.get_xlabel(), tension.get_xlabel()) == ("compression (eV/Å³)", "tension (eV/Å³)")
    assert compression.get_xlim() == tension.get_xlim()[::-1]


def test_stress_is_the_same_in_either_unit(mixed, published):
    """What the release left out is not there; the rest is in the same bins, whatever the unit of its file."""
    ours, theirs = (
        count(subjects([path]), pick(FIGURES, ["stress"])).tables["stress"].popitem()[1].to_pylist()
        for path in (mixed, published)
    )
    bins = {(row["source"], row["functional"], row["sign"], round(row["low"] or 0, 12)) for row in ours}
    assert {(row["source"], row["functional"], row["sign"], round(row["low"] or 0, 12)) for row in theirs} <= bins


def test_space_groups_show_all_230(mixed):
    counts = count(subjects([mixed]), pick(FIGURES, ["space_groups"]))
    figure = draw(counts, "space_groups")
    left, right = figure.axes
    assert left.get_xlim() == (0, 231)
    assert left.get_yscale() == "log"
    (table,) = counts.tables["space_groups"].values()
    ends = {row["space_group"]: row["last"] for row in table.to_pylist() if row["last"]}
    bars = {round(b.get_x() + b.get_width() / 2): b.get_height() for b in left.patches if b.get_height()}
    assert bars == ends
    assert [text.get_text() for text in right.get_yticklabels()] == [*SYSTEMS, "all"]
    rows = table.to_pylist()
    share = 100 * sum(row["both"] for row in rows) / sum(row["first"] for row in rows)
    assert right.patches[-1].get_width() == pytest.approx(share)


def test_steps_have_totals(mixed):
    counts = count(subjects([mixed]), pick(FIGURES, ["steps"]))
    (panel,) = draw(counts, "steps").axes
    contents = counts.contents["mixed"]
    n_runs, n_frames = (sum(contents[name].to_pylist()) for name in ("trajectories", "frames"))
    assert panel.get_legend().texts[-1].get_text() == f"trajectories: {n_runs:,} with {n_frames:,} frames"
    assert [text.get_text()[:7] for text in panel.get_legend().texts[:-1]] == ["stage 0", "stage 1", "stage 2"]


def test_overlap_counts_each_combination(mixed):
    counts = count(subjects([mixed]), pick(FIGURES, ["overlap"]))
    figure = draw(counts, "overlap")
    (table,) = counts.tables["overlap"].values()
    for panel, key in zip(figure.axes[:2], ("formula", "formula and space group"), strict=True):
        rows = [row for row in table.to_pylist() if row["key"] == key]
        assert [bar.get_height() for bar in panel.patches] == [row["distinct_keys"] for row in rows]


def test_bins_of_whole_numbers():
    edges, density = per_number([1, 2, 2, 10, 11, 12], [5, 1, 1, 3, 2, 1])
    assert edges[:3].tolist() == [0.5, 1.5, 2.5]
    assert density[:2].tolist() == [5, 2]
    assert (density * np.diff(edges)).sum() == pytest.approx(13)


@pytest.mark.parametrize(
    ("n", "written"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1k"), (1234, "1.2k"), (9960, "10k"), (123456, "123k"),
     (999_900, "1M"), (3.4e6, "3.4M"), (2e9, "2G")],
)  # fmt: skip
def test_short_numbers(n, written):
    assert short(n) == written


def test_numbers_on_axes():
    assert [style.number(x) for x in (0.02, 1, 500)] == ["0.02", "1", "500"]
    assert [style.number(x) for x in (1e-5, 2e-7, 5e4)] == ["$10^{-5}$", "$2\\times 10^{-7}$", "$5\\times 10^{4}$"]
    assert [style.share(*its) for its in ((1, 1), (1, 3), (1, 3000), (0, 0))] == ["100 %", "33 %", "0.033 %", "0 %"]


def test_a_wrong_name():
    with pytest.raises(FigureError, match="no figure force; there are elements, max_force"):
        pick(FIGURES, ["force"])
    assert [figure.name for figure in pick(FIGURES, ["stress", "energy", "stress"])] == ["stress", "energy"]
