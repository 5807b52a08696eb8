"""Listing pages: names from the address, dates and sizes from the line."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servers.faulty import autoindex, rounded
from trajmill.remotes.pages import Link, links

URL = "http://127.0.0.1/data/pbe/"

# ruff: noqa: E501 (pages as servers make them)
NGINX = """<html>\r
<head><title>Index of /data/pbe/</title></head>\r
<body>\r
<h1>Index of /data/pbe/</h1><hr><pre><a href="../">../</a>\r
<a href="older/">older/</a>                                             02-Jul-2025 10:10                   -\r
<a href="a%20b.json.bz2">a b.json.bz2</a>                                       02-Jul-2025 10:11           241172480\r
<a href="alex_go_with_a_name_that_nginx_cuts_in_the_text_000.json.bz2">alex_go_with_a_name_that_nginx_cuts_in_the_tex..&gt;</a> 29-Feb-2024 00:00   230M\r
<a href="small.json.bz2">small.json.bz2</a>                                     31-Dec-1999 23:59    9999 \r
</pre><hr></body>\r
</html>\r
"""

APACHE = """<html><body><pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a> <a href="?C=S;O=A">Size</a>
<hr><img src="/icons/back.gif" alt="[DIR]"> <a href="/data/">Parent Directory</a>                    -
<img src="/icons/x.gif" alt="[   ]"> <a href="a.json.bz2">a.json.bz2</a>   2025-07-02 10:10  1.5M  paths
<img src="/icons/x.gif" alt="[   ]"> <A class="f" HREF='b.json.bz2'>b.json.bz2</A>   2025-07-02 10:10  12K
</pre></body></html>"""


def test_nginx():
    assert links(NGINX, URL) == [
        Link(url=f"{URL}older/", name="older/", modified="2025-07-02T10:10:00"),
        Link(
            url=f"{URL}a%20b.json.bz2",
            name="a b.json.bz2",
            modified="2025-07-02T10:11:00",
            size=241172480,
            about=241172480,
        ),
        Link(
            url=f"{URL}alex_go_with_a_name_that_nginx_cuts_in_the_text_000.json.bz2",
            name="alex_go_with_a_name_that_nginx_cuts_in_the_text_000.json.bz2",
            modified="2024-02-29T00:00:00",
            about=230 << 20,
        ),
        Link(url=f"{URL}small.json.bz2", name="small.json.bz2", modified="1999-12-31T23:59:00", size=9999, about=9999),
    ]


def test_apache():
    a, b = links(APACHE, URL)
    assert (a.name, a.modified, a.size, a.about) == ("a.json.bz2", "2025-07-02T10:10:00", None, 3 << 19)
    assert (b.name, b.modified, b.size, b.about) == ("b.json.bz2", "2025-07-02T10:10:00", None, 12 << 10)


@pytest.mark.parametrize(
    ("beside", "modified", "size", "about"),
    [
        ("", None, None, 0),
        (" no date 12", None, None, 0),
        (" 02-Jul-2025 10:10 -", "2025-07-02T10:10:00", None, 0),
        (" 02-Jul-2025 10:10 0", "2025-07-02T10:10:00", 0, 0),
        (" 31-Feb-2025 10:10 5", None, 5, 5),
        (" 02-Foo-2025 10:10 5", None, 5, 5),
        (" 02-Jul-2025 10:10 1.2.3M", None, None, 0),
        (" 02-Jul-2025 10:10 .", None, None, 0),
        (" 02-Jul-2025 10:10 12.5", None, None, 0),
        (" 02-Jul-2025 10:10 3G", "2025-07-02T10:10:00", None, 3 << 30),
        (" 02-Jul-2025 10:10 " + 5000 * "9", None, None, 0),
    ],
)
def test_what_stands_beside(beside, modified, size, about):
    [link] = links(f'<a href="x">x</a>{beside}\n', URL)
    assert (link.modified, link.size, link.about) == (modified, size, about)


@pytest.mark.parametrize("href", ["../", "/", "/data/", "./", "?C=M", "#top", "http://[::1/x", URL])
def test_what_is_no_link_to_a_file(href):
    assert links(f'<a href="{href}">x</a>', URL) == []


def test_addresses_are_absolute_and_each_comes_once():
    page = '<a href="x">x</a> <a href="./x">again</a> <a href="//other/y?z#w">y</a> <a href="&#x7a;">z</a>'
    assert [(link.url, link.name) for link in links(page, URL)] == [
        (f"{URL}x", "x"),
        ("http://other/y?z#w", "y"),
        (f"{URL}z", "z"),
    ]


@given(st.text(alphabet=string.printable + "é²٣\x00", max_size=200))
def test_no_page_is_an_error(junk):
    page = f'<a href="{junk}">{junk}</a>{junk}<a href="{junk}x">x</a> 02-Jul-2025 10:10 {junk}\n<a href="{junk}">'
    for link in links(page, URL):
        assert link.url
        assert "/" not in link.name[:-1] or "%2f" in junk.lower()


@given(
    st.text(st.characters(exclude_characters="/", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=80).filter(
        lambda name: name not in (".", "..")
    ),
    st.integers(0, 1 << 20),
)
def test_what_nginx_lists_is_read_back(name, size):
    class File:
        def __init__(self, name=name):
            self.name = name

        is_dir = staticmethod(lambda: False)
        iterdir = staticmethod(lambda: [File()])
        stat = staticmethod(lambda: type("Status", (), {"st_size": size, "st_mtime": 1751451000})())

    for exact in (True, False):
        [link] = links(autoindex(File(), "/data/pbe/", exact=exact).decode(), URL)
        assert link.name == name
        assert link.modified == "2025-07-02T10:10:00"
        assert link.size == (size if exact or size <= 9999 else None)
        assert abs(link.about - size) <= (0 if exact or size <= 9999 else 513)


def test_rounding_is_nginx_s():
    sizes = [9999, 10_000, 12_799, (1 << 20) - 1, 1 << 20, (1 << 30) - 1, 1 << 30, 3 << 29]
    assert [rounded(size) for size in sizes] == ["9999", "10K", "12K", "1024K", "1M", "1024M", "1G", "2G"]
