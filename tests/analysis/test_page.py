"""The report is one page that needs nothing else, and says what the figures show."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trajmill
from trajmill.analysis import FIGURES, page
from trajmill.analysis.files import subjects
from trajmill.analysis.numbers import count
from trajmill.errors import FigureError

VOID = {"meta", "input", "br", "link"}


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects what the tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.cells = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.look(attributes)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.look(attributes)

    def look(self, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "data"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


@pytest.fixture(scope="module")
def written(mixed, samples, published, tmp_path_factory):
    chosen = subjects([samples, mixed, published])
    counts = count(chosen, FIGURES)
    out = tmp_path_factory.mktemp("page") / "report.html"
    page.write(counts, chosen, out)
    return out, counts


def test_one_small_file_that_needs_no_network(written):
    out, _ = written
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]
    assert out.stat().st_size < 6_000_000
    text = out.read_text()
    found = Page(text)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in found.links)
    assert not {"link", "iframe", "img", "object", "embed"} & set(found.tags)
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(|import\(", text)


def test_links_within_lead_somewhere(written):
    found = Page(written[0].read_text())
    assert len(found.ids) == len(set(found.ids))
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert set(re.findall(r"url\(#(.*?)\)", written[0].read_text())) <= set(found.ids)


def test_every_figure_with_its_numbers(written):
    out, counts = written
    text = out.read_text()
    found = Page(text)
    assert found.tags.count("figure") == len(FIGURES)
    assert set(re.findall(r'<button data-file="(.*?)\.csv">', text)) == {figure.name for figure in FIGURES}
    for label, contents in counts.contents.items():
        assert label in found.cells
        assert f"{sum(contents['frames'].to_pylist()):,}" in found.cells
    assert "-40" in found.cells  # what the rule `license` took


def test_units_versions_and_reasons(written):
    found = Page(written[0].read_text())
    for word in ("eV/A^3", "kBar", "max_force", "trajmill", "matplotlib"):
        assert word in found.cells
    assert "energy_window" in written[0].read_text()  # of the recipe


def test_what_is_left_out_is_said(published, tmp_path):
    file = next(published.glob("compatible_pbe/*.parquet"))
    chosen = subjects([file])
    page.write(count(chosen, FIGURES), chosen, tmp_path / "r.html")
    assert any("what was rejected stands in a store" in cell for cell in Page((tmp_path / "r.html").read_text()).cells)


def test_names_are_escaped(mixed, tmp_path):
    """A column and a label are data, never markup."""
    nasty = tmp_path / "<b>&'x.parquet"
    trajmill.open(mixed).save(nasty)
    table = pq.read_table(nasty)
    index = table.schema.names.index("functional")
    table = table.set_column(index, table.schema.field(index), pa.array(["<script>alert(1)</script>"] * len(table)))
    pq.write_table(table, nasty)
    chosen = subjects([nasty, mixed])
    text = page.page(count(chosen, FIGURES), chosen)
    assert text.count("<script>") == 1
    Page(text)


def test_a_page_of_ours_is_replaced_and_no_other_file(written, mixed, tmp_path):
    _, counts = written
    out = tmp_path / "report.html"
    out.write_text("<html>mine</html>")
    with pytest.raises(FigureError, match="is no report of trajmill; choose another name"):
        page.write(counts, {}, out)
    assert out.read_text() == "<html>mine</html>"
    out.write_bytes(written[0].read_bytes())
    chosen = subjects([mixed])
    page.write(count(chosen, FIGURES[:1]), chosen, out)
    assert out.read_text().count("<figure>") == 1


def test_long_tables_are_cut_and_say_so(mixed, monkeypatch):
    monkeypatch.setattr(page, "ROWS", 3)
    chosen = subjects([mixed])
    text = page.page(count(chosen, FIGURES[:1]), chosen)
    assert "the first 3 of" in text


def test_a_page_that_grew_too_large(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LARGEST", 1000)
    chosen = subjects([mixed])
    with pytest.raises(FigureError, match="more than a page should"):
        page.write(count(chosen, FIGURES[:1]), chosen, tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []
