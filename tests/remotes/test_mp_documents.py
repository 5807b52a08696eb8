"""The Materials Project's JSON Lines on a server that speaks S3, in the buckets' own layout."""

import gzip
import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import chores
from mp_samples import REAL
from servers.faulty import FaultPlan, serve
from servers.moto_s3 import s3_server
from trajmill.errors import (
    FetchError,
    RemoteContentError,
    RemoteNotFoundError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from trajmill.fetcher import fetch
from trajmill.raw import RawManifest, current, entry
from trajmill.recipe import Fetch, Recipe
from trajmill.remotes import open_remote, transfer
from trajmill.remotes.mp_documents import MaterialsProjectDocuments
from trajmill.remotes.mp_tables import MaterialsProjectTables
from trajmill.remotes.s3 import Bucket
from trajmill.remotes.transfer import Session
from trajmill.sources import open_sources
from trajmill.uris import one_line

ATOMATE2, REST = "atomate2_*.jsonl.gz", "[!a]*.jsonl.gz"
OLD, NEW = "2025-02-12", "2025-09-25"
MATERIALS = f"collections/{NEW}/materials/nelements=3/symmetry_number=12.jsonl.gz"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


@pytest.fixture(scope="module")
def buckets(tmp_path_factory):
    """Folders with what the buckets hold, and traps beside it."""
    root = tmp_path_factory.mktemp("buckets")
    parsed, build = root / "materialsproject-parsed", root / "materialsproject-build"
    for number, file in enumerate(sorted((REAL / "tasks").glob("*"))):
        if file.match(ATOMATE2):
            place = parsed / "tasks_atomate2" / "format=jsonl" / "dt=2025-09-01"
        else:
            place = parsed / f"tasks-legacy/tasks/nelements={number % 3 + 1}/output_spacegroup_number={number}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / f"dt=2024-11-01-{file.name}")
    for manifest in ("manifest.jsonl", "manifest.parquet", "manifest.jsonl.gz"):
        write(parsed / "tasks-legacy" / manifest)
        write(parsed / "tasks_atomate2" / manifest)
    write(parsed / "tasks" / "older.jsonl.gz")  # superseded by tasks-legacy
    write(parsed / "tasks-other" / "x.jsonl.gz")
    [materials] = (REAL / "materials").glob("*")
    for date in (OLD, NEW):
        place = build / f"collections/{date}/materials/nelements=3"
        place.mkdir(parents=True)
        shutil.copyfile(materials, place / "symmetry_number=12.jsonl.gz")
        write(build / f"collections/{date}/materials/manifest.jsonl.gz")
        write(build / f"collections/{date}/phonon/x.jsonl.gz")
    write(build / "collections/2026-01-01/tasks/x.jsonl.gz")  # a date without materials
    write(build / "collections/2026-01-02/materials/manifest.jsonl.gz")
    write(build / "collections/materials/version=2026.1/_delta_log/00000000000000000000.json")
    write(build / "collections/materials/version=2026.1/part-0.jsonl.gz")
    write(build / "collections/latest/materials/x.jsonl.gz")
    return root


def write(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(b"{}\n"))


@pytest.fixture
def server(buckets):
    with s3_server() as server:
        for bucket in buckets.iterdir():
            server.put(bucket.name, bucket)
        yield server


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def get(server, raw, *, endpoint=None, mp=None, prune=False, **options):
    mp = {"layout": "jsonl", "endpoint": endpoint or server.endpoint} | (mp or {})
    recipe = Recipe.model_validate({"fetch": {"retries": 2, "timeout": 2.0, "mp": mp, **options}})
    return fetch("mp", raw, recipe, prune=prune)


def delete(server, bucket, key):
    import httpx2

    httpx2.delete(f"{server.endpoint}/{bucket}/{key}", headers={"x-quiet": "1"}).raise_for_status()


def records(root, workspace):
    """All records of a folder, by task id, without the name of the file they came from."""
    [source] = open_sources(Recipe.model_validate({"mp": {"path": root, "tasks_without_material": "keep"}}))
    source.prepare(workspace)
    found = {}
    for asset in source.assets():
        for record in source.read(asset):
            kept = [
                (t.task_id, t.trajectory_id, t.numbers.tolist(), t.energy.tolist(), t.forces.tolist())
                for t in record.trajectories
            ]
            left_out = [(r.task_id, r.rule, re.sub(r"\S*jsonl.gz", "", r.detail or "")) for r in record.rejections]
            found[repr((kept and kept[0][0], left_out and left_out[0][0]))] = (record.n_frames, kept, left_out)
    return found


def test_both_places_of_tasks_and_the_newest_snapshot(server, buckets, raw):
    summary = get(server, raw)
    assert summary.version == {"materials": NEW}
    parsed = buckets / "materialsproject-parsed"
    tasks = [p.relative_to(parsed).as_posix() for p in parsed.rglob("*.jsonl.gz") if "dt=" in p.name]
    assert sorted(summary.new) == sorted([*tasks, MATERIALS])
    assert len(tasks) == 14
    for name in tasks:
        assert (raw / name).read_bytes() == (parsed / name).read_bytes()
        known = entry(raw, raw / name)
        assert known.remote["etag"].strip('"') == hashlib.md5((raw / name).read_bytes()).hexdigest()
        assert known.uri.startswith(f"{server.endpoint}/materialsproject-parsed/tasks")
        assert known.modified.endswith("+00:00")
        assert known.part_of == ""
    assert entry(raw, raw / MATERIALS).part_of == "materials"


def test_nobody_signs_in_and_everybody_says_who_asks(server, raw):
    get(server, raw)
    assert server.requests
    assert not any("authorization" in request.headers for request in server.requests)
    assert not any("X-Amz-Signature" in request.query for request in server.requests)
    assert {request.headers["user_agent"].partition("/")[0] for request in server.requests} == {"trajmill"}


def test_what_was_fetched_reads_as_what_was_published(server, raw, tmp_path):
    get(server, raw)
    fetched = records(raw, tmp_path / "one")
    assert fetched == records(REAL, tmp_path / "other")
    assert sum(n_frames for n_frames, _, _ in fetched.values()) > 10


def test_again_nothing_is_transferred(server, raw):
    first = get(server, raw)
    server.requests.clear()
    again = get(server, raw)
    assert (again.unchanged, again.n_bytes) == (first.new, 0)
    assert not [r for r in server.requests if r.path.endswith(".gz")]


def test_the_older_place_of_tasks_is_read_when_the_newer_is_empty(server, buckets, raw):
    parsed = buckets / "materialsproject-parsed"
    for file in (parsed / "tasks-legacy").rglob("*.jsonl.gz"):
        if "manifest" not in file.name:
            delete(server, parsed.name, file.relative_to(parsed).as_posix())
    found = [name for name in get(server, raw).new if not name.startswith("collections")]
    assert {name.split("/")[0] for name in found} == {"tasks_atomate2", "tasks"}


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("tasks_atomate2/", r"materialsproject-parsed/tasks_atomate2/: no \*.jsonl.gz files of tasks; see fetch.mp"),
        ("collections/2", "materialsproject-build/collections/: no dated snapshot of materials; see fetch.mp"),
    ],
)
def test_what_is_nowhere(server, buckets, raw, gone, message):
    for bucket in buckets.iterdir():
        for file in bucket.rglob("*"):
            key = file.relative_to(bucket).as_posix()
            if file.is_file() and key.startswith(gone):
                delete(server, bucket.name, key)
    with pytest.raises(RemoteNotFoundError, match=message):
        get(server, raw)


def test_a_newer_snapshot_takes_the_place_of_the_older(server, buckets, raw, tmp_path):
    get(server, raw)
    source = buckets / "materialsproject-build" / "collections" / NEW
    server.put("materialsproject-build", source, "collections/2026-03-03")
    summary = get(server, raw)
    new = MATERIALS.replace(NEW, "2026-03-03")
    assert (summary.new, summary.superseded, summary.vanished) == ([new], [MATERIALS], [])
    assert summary.version == {"materials": "2026-03-03"}
    assert RawManifest.load(raw).dropped == {MATERIALS: "superseded"}
    named = current(raw, raw.rglob("*.jsonl.gz"))
    assert raw / new in named
    assert raw / MATERIALS not in named
    assert records(raw, tmp_path / "one") == records(REAL, tmp_path / "other")
    assert get(server, raw, prune=True).pruned == [MATERIALS]
    assert not (raw / "collections" / NEW).exists()


def test_a_changed_object_is_fetched_again_and_a_vanished_one_kept(server, buckets, raw, tmp_path):
    first = get(server, raw)
    changed = next(name for name in first.new if name.startswith("tasks_atomate2"))
    gone = next(name for name in first.new if name.startswith("tasks-legacy"))
    (tmp_path / "new" / changed).parent.mkdir(parents=True)
    (tmp_path / "new" / changed).write_bytes(gzip.compress(b'{"task_id": "mp-1"}\n'))
    server.put("materialsproject-parsed", tmp_path / "new")
    delete(server, "materialsproject-parsed", gone)
    summary = get(server, raw)
    assert (summary.changed, summary.vanished) == ([changed], [gone])
    assert (raw / changed).read_bytes() == (tmp_path / "new" / changed).read_bytes()
    assert (raw / gone).exists()


def test_content_that_is_not_what_the_etag_says(server, raw):
    """The same length, so that only the checksum tells."""

    def damage(method, path, body):
        return body[:-9] + bytes(9) if path.endswith("symmetry_number=12.jsonl.gz") and method == "GET" else body

    server.damage = damage
    [why] = get(server, raw).failed.values()
    assert "the checksum is wrong, it should be" in why
    assert not (raw / MATERIALS).exists()
    server.damage = lambda _method, _path, body: body
    assert not get(server, raw).failed


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, RemoteRefusedError),
        (404, RemoteNotFoundError),
        (503, RemoteUnavailableError),
        (500, RemoteUnavailableError),
    ],
)
@pytest.mark.parametrize("what", ["listing", "file"])
def test_errors_of_the_server(server, raw, status, kind, what):
    """Told apart by type when nothing can be had, and by file when single files cannot."""

    def fault(method, path):
        return status if path.endswith(".jsonl.gz") == (what == "file") else None

    server.fault = fault
    begin = time.monotonic()
    if what == "file" and kind is not RemoteUnavailableError:
        summary = get(server, raw)
        assert len(summary.failed) == 15
        assert all(str(status) in why for why in summary.failed.values())
    else:
        with pytest.raises(kind) as caught:
            get(server, raw)
        assert type(caught.value) is kind
        assert server.endpoint in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - begin < 20.0
    assert not list(raw.rglob("*.gz"))
    server.fault = lambda *_: None
    assert not get(server, raw).failed


def test_a_passing_fault_of_the_server(server, raw):
    seen = set()

    def once(method, path):
        if path in seen:
            return None
        seen.add(path)
        return 503

    server.fault = once
    assert len(get(server, raw).new) == 15


@pytest.mark.parametrize(
    ("status", "kind"),
    [(403, RemoteRefusedError), (404, RemoteNotFoundError), (503, RemoteUnavailableError), (None, None)],
)
def test_what_obstore_says_of_a_single_object(server, status, kind):
    """As it is asked for ranges of tables."""
    import obstore

    options = Recipe().fetch.mp.model_copy(update={"endpoint": server.endpoint})
    with Session(Fetch(retries=1)) as session:
        bucket = Bucket("materialsproject-build", options, session)
        assert bucket.ask(MATERIALS, lambda: obstore.head(bucket.store, MATERIALS))["size"] > 0
        server.fault = lambda *_: status
        if status:
            with pytest.raises(kind, match=MATERIALS.replace("=", "%3D")) as caught:
                bucket.ask(MATERIALS, lambda: obstore.get_range(bucket.store, MATERIALS, start=0, length=9))
            assert type(caught.value) is kind
            assert len(str(caught.value).splitlines()) == 1
            assert "Debug" not in str(caught.value)


def test_a_listing_of_several_pages(tmp_path, raw):
    """A server that gives two keys at a time, and once one that is cut off."""

    def page(*names, token="", truncated=False):
        more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
        entries = "".join(
            f"<Contents><Key>tasks_atomate2/{name}.jsonl.gz</Key><LastModified>2025-01-02T03:04:05.000Z</LastModified>"
            f"<ETag>&quot;x&quot;</ETag><Size>{number}</Size></Contents>"
            for number, name in enumerate(names)
        )
        head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        cut = "true" if token or truncated else "false"
        return f"{head}<IsTruncated>{cut}</IsTruncated>{more}{entries}</ListBucketResult>"

    answers = [page("a", "b&amp;c", token="1+/="), page("d")[:-20], page("d", truncated=True), page("d")]
    asked = []

    class Answering(Session):
        def page(self, url):
            asked.append(url)
            return answers.pop(0), url

    with Answering(Fetch(retries=2)) as session:
        bucket = Bucket("b", Recipe().fetch.mp.model_copy(update={"endpoint": "http://x"}), session)
        files = list(bucket.files("tasks_atomate2/"))
        assert [(f.path, f.size) for f in files] == [
            ("tasks_atomate2/a.jsonl.gz", 0),
            ("tasks_atomate2/b&c.jsonl.gz", 1),
            ("tasks_atomate2/d.jsonl.gz", 0),
        ]
        assert files[0].modified == "2025-01-02T03:04:05+00:00"
        assert files[1].uri == "http://x/b/tasks_atomate2/b%26c.jsonl.gz"
        assert asked[1].endswith("&continuation-token=1%2B%2F%3D")
        answers += 3 * [page("e", truncated=True)]
        with pytest.raises(RemoteContentError, match="something else came in place of a listing"):
            list(bucket.files("tasks_atomate2/"))


def test_no_such_bucket(server, raw):
    with pytest.raises(
        RemoteNotFoundError, match=r"/nowhere\?.*the server answers 404 .*see the recipe's section fetch"
    ):
        get(server, raw, mp={"parsed": "nowhere"})


def test_a_server_that_is_down(raw):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    begin = time.monotonic()
    with pytest.raises(RemoteUnavailableError, match="run again to go on"):
        get(None, raw, endpoint=endpoint)
    assert time.monotonic() - begin < 20.0


def test_a_web_page_in_place_of_a_listing(tmp_path, raw):
    with serve(tmp_path) as server:
        server.pages |= dict.fromkeys(
            ("/materialsproject-parsed", "/materialsproject-build"), b"<html>Sign in<br></html>"
        )
        with pytest.raises(RemoteContentError, match=r"materialsproject-parsed.*the listing cannot be read"):
            get(None, raw, endpoint=server.url)


FETCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path
from trajmill.fetcher import fetch
from trajmill.recipe import Recipe
try:
    fetch("mp", Path(sys.argv[1]), Recipe.model_validate_json(sys.argv[2]))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    raise
"""


@contextmanager
def silent_server():
    """Take connections and say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}", server


@pytest.mark.parametrize("layout", ["jsonl", "delta"])
def test_interrupted_while_the_server_lists_in_silence(raw, layout):
    """Also where deltalake waits, which holds off signals."""
    recipe = Recipe.model_validate(
        {"fetch": {"timeout": 60.0, "mp": {"layout": layout, "endpoint": "http://ENDPOINT"}}}
    )
    with silent_server() as (endpoint, server):
        text = json.dumps(recipe.model_dump(mode="json")).replace("http://ENDPOINT", endpoint)
        command = [sys.executable, "-c", FETCH, raw, text]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            server.settimeout(chores.PATIENCE)
            connection, _ = server.accept()
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            try:
                said, told = process.communicate(timeout=15.0)
            finally:
                process.kill()
                connection.close()
    assert said == "interrupted\n"
    assert told.rstrip().endswith("KeyboardInterrupt")


def test_a_server_that_is_silent(raw):
    with silent_server() as (endpoint, _):
        begin = time.monotonic()
        with pytest.raises(RemoteUnavailableError):
            get(None, raw, endpoint=endpoint, retries=1, timeout=0.5)
        assert time.monotonic() - begin < 15.0


DATE, SIZE = "<LastModified>2025-01-02T03:04:05.000Z</LastModified>", "<Size>5</Size>"


@pytest.mark.parametrize(
    "said",
    [SIZE, DATE, DATE + "<Size></Size>", DATE + "<Size>much</Size>", SIZE + "<LastModified>yesterday</LastModified>"],
)
def test_a_listing_that_does_not_say_date_or_size(said):
    listing = f'<ListBucketResult xmlns="x"><Contents><Key>tasks/a.jsonl.gz</Key>{said}</Contents></ListBucketResult>'
    asked = []

    class Answering(Session):
        def page(self, url):
            asked.append(url)
            return listing, url

    with Answering(Fetch(retries=2)) as session:
        bucket = Bucket("b", Recipe().fetch.mp, session)
        with pytest.raises(RemoteContentError, match="the listing cannot be read"):
            list(bucket.files("tasks/"))
    assert len(asked) == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"endpoint": "localhost:9000"},
        {"endpoint": "foo"},
        {"endpoint": "http://"},
        {"endpoint": "ftp://127.0.0.1/"},
        {"endpoint": "http://127.0.0.1:99999"},
        {"endpoint": "http://127.0.0.1:port"},
        {"endpoint": "http://me:S3CRET@a b/"},
        {"parsed": "a b"},
        {"build": "a b"},
    ],
)
@pytest.mark.parametrize("layout", ["jsonl", "delta"])
def test_what_is_no_web_address(raw, capfd, changed, layout):
    """obstore and deltalake would panic."""
    made = Recipe()
    options = made.fetch.mp.model_copy(update={"endpoint": "http://127.0.0.1:9"} | changed)
    tables = MaterialsProjectTables(options, made.mp, made.rules.license)
    remote = MaterialsProjectDocuments(options) if layout == "jsonl" else tables
    with (
        Session(Fetch(retries=0)) as session,
        pytest.raises(RemoteNotFoundError, match=r": no web address; see fetch.mp in the recipe$") as caught,
    ):
        next(remote.stages(session, raw))
    assert "S3CRET" not in str(caught.value)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("status", [403, 404, 503])
@pytest.mark.parametrize(("layout", "where"), [("jsonl", ""), ("delta", ""), ("delta", "_delta_log")])
def test_a_password_of_the_endpoint_is_not_shown(server, raw, layout, status, where):
    server.fault = lambda _method, path: status if where in path else None
    endpoint = server.endpoint.replace("//", "//me:S3CRET@")
    heard = []
    made = Recipe.model_validate({"fetch": {"retries": 1, "mp": {"layout": layout, "endpoint": endpoint}}})
    with Session(made.fetch, note=heard.append) as session:
        bucket = Bucket("materialsproject-build", made.fetch.mp, session)
        with pytest.raises(FetchError, match=server.endpoint) as caught:
            next(open_remote("mp", made).stages(session, raw))
        assert "S3CRET" not in "".join([str(caught.value), *heard, bucket.url(MATERIALS)])


def test_a_web_page_in_place_of_a_table(tmp_path, raw):
    with serve(tmp_path) as server:
        server.pages["/materialsproject-parsed"] = b"<html>Sign in<br></html>"
        server.plan = FaultPlan(faults=("unavailable",), rate=1.0, budget=99, matching="_delta_log")
        with pytest.raises(RemoteContentError, match=r"materialsproject-parsed.*the listing cannot be read"):
            get(None, raw, endpoint=server.url, mp={"layout": "delta"}, retries=0)


def test_what_rust_says_in_one_line():
    said = "S3 error\n   \x1b[31m↳\x1b[0m Error performing GET http://me:S3CRET@h/b/k in 1 s\n\nDebug source:\nX {"
    assert one_line(OSError(said)) == "S3 error ↳ Error performing GET http://h/b/k in 1 s"
    assert len(one_line(OSError("long " * 999))) == 300
