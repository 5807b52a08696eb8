"""OQMD's download page, and the dump that is fetched from it read by its source."""

import os
import shutil
from pathlib import Path

import pytest

from servers.faulty import serve
from trajmill.errors import RemoteNotFoundError, RemoteRefusedError, RemoteUnavailableError
from trajmill.fetcher import fetch
from trajmill.raw import RawManifest, entry
from trajmill.recipe import Oqmd, Recipe
from trajmill.remotes import transfer
from trajmill.sources import open_sources
from trajmill.sources.oqmd import open_oqmd

DUMP = Path(__file__).parents[1] / "data" / "oqmd" / "qmdb__v1_6__112023.sql.gz"
WHEN = 1751451000  # 2025-07-02T10:10:00Z
V6, V9, V10 = "qmdb__v1_6__112023.sql.gz", "qmdb__v1_9__012027.sql.gz", "qmdb__v1_10__062027.sql.gz"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "upstream" / "static" / "downloads"
    folder.mkdir(parents=True)
    for name in (V6, V9, V10):
        shutil.copyfile(DUMP, folder / name)
        os.utime(folder / name, (WHEN, WHEN))
    with serve(tmp_path / "upstream") as server:
        publish(server, V6)
        yield server


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def publish(server, *names, place="/static/downloads/"):
    """Write the page as oqmd.org does, a paragraph for each version."""
    page = "<html><head><title>OQMD: Download</title></head><body><h1>Download the OQMD</h1>\n"
    for name in names:
        version = name.removeprefix("qmdb__v").partition("__")[0].replace("_", ".")
        page += f"<h3>OQMD v{version}</h3>\n<p>Database updated on: <b>November, 2023</b>\n</p>\n"
        page += f'<p><a href="{place}{name}">{name}</a> (gzipped MySQL dump)</p>\n'
    page += '<p><a href="/static/qmdb.pdf">Paper</a> <a href="mailto:x@example.org">Mail</a></p>\n</body></html>\n'
    server.pages["/download/"] = page.encode()


def get(server, raw, **options):
    recipe = {"retries": 2, "timeout": 2.0, "oqmd": {"url": f"{server.url}download/"}}
    return fetch("oqmd", raw, Recipe.model_validate({"fetch": recipe}), **options)


def test_the_dump_is_fetched_and_noted(server, raw):
    summary = get(server, raw)
    assert (summary.new, summary.version, summary.n_bytes) == ([V6], {"dump": "1.6 of 2023-11"}, DUMP.stat().st_size)
    assert (raw / V6).read_bytes() == DUMP.read_bytes()
    known = entry(raw, raw / V6)
    assert known.uri == f"{server.url}static/downloads/{V6}"
    assert (known.modified, known.part_of) == ("2025-07-02T10:10:00+00:00", "dump")
    assert known.remote["etag"]
    server.log.clear()
    assert get(server, raw).unchanged == [V6]
    assert not server.asked(".gz")


def test_what_was_fetched_reads_as_what_was_published(server, raw, tmp_path):
    def records(path):
        [source] = open_sources(Recipe.model_validate({"oqmd": {"path": path}}))
        source.prepare(tmp_path / "workspace")
        return [record for asset in source.assets() for record in source.read(asset)]

    get(server, raw)
    fetched, original = records(raw), records(DUMP)
    assert [(r.n_frames, len(r.rejections)) for r in fetched] == [(r.n_frames, len(r.rejections)) for r in original]
    assert sum(record.n_frames for record in fetched)


@pytest.mark.parametrize("names", [[V10, V9, V6], [V6, V9, V10], [V9, V10, V6]])
def test_versions_are_numbers_and_not_text(server, raw, names):
    publish(server, *names)
    assert get(server, raw).version == {"dump": "1.10 of 2027-06"}
    assert [path.name for path in raw.glob("*.gz")] == [V10]


def test_a_newer_version_takes_the_place_of_the_older(server, raw):
    publish(server, V9, V6)
    get(server, raw)
    publish(server, V10, V9, V6)
    summary = get(server, raw)
    assert (summary.new, summary.superseded, summary.vanished) == ([V10], [V9], [])
    manifest = RawManifest.load(raw)
    assert (set(manifest.files), manifest.dropped, manifest.version) == (
        {V10},
        {V9: "superseded"},
        {"dump": "1.10 of 2027-06"},
    )
    [source] = open_sources(Recipe.model_validate({"oqmd": {"path": raw}}))
    assert source.dump == raw / V10
    assert (raw / V9).exists()
    assert get(server, raw, prune=True).pruned == [V9]
    assert not (raw / V9).exists()


def test_the_same_version_of_another_month_takes_its_place_too(server, raw):
    get(server, raw)
    again = V6.replace("112023", "012024")
    shutil.copyfile(DUMP, server.root / "static" / "downloads" / again)
    publish(server, again)
    summary = get(server, raw)
    assert (summary.new, summary.superseded, summary.vanished) == ([again], [V6], [])
    assert open_oqmd(raw, Oqmd()).dump.name == again, "by its year, which comes last in the name"


@pytest.mark.parametrize("place", ["absolute", "other host", "protocol relative", "relative"])
def test_links_are_joined_to_the_page_s_address(server, raw, place):
    other = server.url.replace("127.0.0.1", "localhost")
    there = {
        "absolute": f"{server.url}static/downloads/",
        "other host": f"{other}static/downloads/",
        "protocol relative": other.removeprefix("http:") + "static/downloads/",
        "relative": "../static/downloads/",
    }
    publish(server, V6, place=there[place])
    get(server, raw)
    host = "localhost" if place in ("other host", "protocol relative") else "127.0.0.1"
    assert entry(raw, raw / V6).uri == f"http://{host}:{server.server_port}/static/downloads/{V6}"


@pytest.mark.parametrize("name", ["../../qmdb.sql.gz", "qmdb__v1_x__112023.sql.gz", "qmdb__v1_6__112023.sql.bz2"])
def test_a_page_without_a_dump(server, raw, name):
    publish(server, name)
    with pytest.raises(RemoteNotFoundError, match=r"links to no dump `qmdb__v1_8__022026.sql.gz`; see fetch.oqmd"):
        get(server, raw)


def test_a_dump_that_is_not_there(server, raw):
    publish(server, "qmdb__v2_0__112027.sql.gz")
    with pytest.raises(RemoteNotFoundError, match=r"qmdb__v2_0__112027.sql.gz: the server answers 404"):
        get(server, raw)


def test_a_dump_that_was_replaced_is_fetched_again(server, raw):
    get(server, raw)
    dump = server.root / "static" / "downloads" / V6
    dump.write_bytes(DUMP.read_bytes() + DUMP.read_bytes())
    assert get(server, raw).changed == [V6]
    assert (raw / V6).read_bytes() == dump.read_bytes()


@pytest.mark.parametrize("etags", ["nginx", "md5", "weak", "none"])
@pytest.mark.parametrize("dates", [True, False])
def test_whatever_the_server_says_of_the_file(server, raw, etags, dates):
    server.etags, server.dates = etags, dates
    get(server, raw)
    assert get(server, raw).unchanged == [V6]
    assert (entry(raw, raw / V6).modified is not None) == dates


def test_an_etag_in_the_form_of_a_checksum_may_mean_something_else(server, raw):
    server.headers[f"/static/downloads/{V6}"] = {"ETag": '"d41d8cd98f00b204e9800998ecf8427e"'}
    assert not get(server, raw).failed


@pytest.mark.parametrize("date", ["yesterday", "Wed, 99 Foo 2025 10:00:00 GMT", ""])
def test_a_date_that_is_none(server, raw, date):
    server.headers[f"/static/downloads/{V6}"] = {"Last-Modified": date}
    get(server, raw)
    assert entry(raw, raw / V6).modified is None


def test_the_question_for_the_size_is_repeated_too(server, raw):
    server.plan.arrange(V6, "unavailable", "reset at once", None, "cut off")
    get(server, raw)
    assert [r.method for r in server.log if r.path.endswith(V6)] == ["HEAD", "HEAD", "HEAD", "GET", "GET"]
    server.plan.arrange(V6, *3 * ["unavailable"])
    with pytest.raises(RemoteUnavailableError, match="503"):
        get(server, raw)


@pytest.mark.parametrize("refusal", ["forbidden", "not allowed", "not implemented"])
def test_a_server_that_refuses_head_is_asked_for_the_file_and_left_after_the_headers(server, raw, refusal):
    server.plan.arrange(V6, refusal, "hold")  # who read the file here would wait for its second half
    summary = get(server, raw)
    assert (summary.new, summary.n_bytes) == ([V6], DUMP.stat().st_size)
    assert [r.method for r in server.log if r.path.endswith(V6)] == ["HEAD", "GET", "GET"]
    assert entry(raw, raw / V6).modified == "2025-07-02T10:10:00+00:00"
    assert get(server, raw).unchanged == [V6]  # HEAD says the same


def test_a_server_that_refuses_head_and_get(server, raw):
    server.plan.arrange(V6, "not allowed", "forbidden")
    with pytest.raises(RemoteRefusedError, match="the server answers 403"):
        get(server, raw)


def test_a_page_without_a_dump_is_named_without_its_password(server, raw):
    publish(server)
    server.url = server.url.replace("//", "//me:S3CRET@")
    with pytest.raises(RemoteNotFoundError, match=r"^http://127.0.0.1:\d+/download/: links to no dump"):
        get(server, raw)
