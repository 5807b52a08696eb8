"""Downloads: whatever the server does, the file is right or not there."""

import errno
import gzip
import hashlib
import json
import os
import random
import time
from pathlib import Path

import pytest

import disks
from servers.faulty import FAULTS, PAGE, FaultPlan, serve
from trajmill.errors import (
    DiskError,
    RemoteContentError,
    RemoteNotFoundError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from trajmill.recipe import Fetch
from trajmill.remotes import transfer
from trajmill.remotes.transfer import Part, Session, Stopped, download

DATA = b"BZh" + random.Random(0).randbytes(150_000)
OTHER = b"BZh" + random.Random(1).randbytes(150_000)
SIZE = len(DATA)
SHA256 = hashlib.sha256(DATA).hexdigest()
LISTED = {"size": SIZE, "modified": "2025-07-02T10:10:00"}
NAME = "a.json.bz2"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


@pytest.fixture
def upstream(tmp_path):
    folder = tmp_path / "upstream"
    folder.mkdir()
    (folder / NAME).write_bytes(DATA)
    return folder


@pytest.fixture
def server(upstream):
    with serve(upstream) as server:
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "raw" / "pbe" / NAME


def session(**changes):
    return Session(Fetch(**{"retries": 3, "timeout": 0.4, "min_rate": 10_000.0} | changes))


def get(server, target, *, size=SIZE, etag=None, identity=LISTED, name=NAME, **options):
    with session(**options) as it:
        return download(it, server.url + name, target, size=size, etag=etag, identity=identity)


def begun(server, target, **options):
    """Leave half a file behind, and forget what that cost."""
    server.plan.arrange(NAME, "cut off")
    with pytest.raises(RemoteUnavailableError):
        get(server, target, retries=0, **options)
    assert part(target).stat().st_size == SIZE // 2
    server.log.clear()


def part(target):
    return target.with_name(f"{target.name}.part")


def note(target):
    return target.with_name(f"{target.name}.part.json")


def nothing_but(target):
    """Whether the file is there, right, and alone."""
    return [p.name for p in target.parent.iterdir()] == [NAME] and target.read_bytes() == DATA


def test_a_file_is_asked_for_once_by_name_and_as_it_is(server, target):
    received = get(server, target)
    assert (received.sha256, dict(received.left_out)) == (SHA256, {})
    assert nothing_but(target)
    [request] = server.log
    assert request.headers["user-agent"].startswith("trajmill/")
    assert request.headers["accept-encoding"] == "identity"
    assert request.range is None


@pytest.mark.parametrize(
    ("fault", "size"),
    [(fault, SIZE) for fault in (*FAULTS, "unmeasured", "compressed", "silent midway", "nothing")]
    # who lies about the length of a file nobody listed cannot be told from who is honest
    + [(fault, None) for fault in FAULTS if fault not in ("short", "long")],
)
def test_a_passing_fault_changes_nothing(server, target, fault, size):
    server.plan.arrange(NAME, fault)
    assert get(server, target, size=size).sha256 == SHA256
    assert nothing_but(target)


LASTING = {
    "busy": (RemoteUnavailableError, "the server answers 429 Too Many Requests"),
    "busy until": (RemoteUnavailableError, "429"),
    "unavailable": (RemoteUnavailableError, "the server answers 503 Service Unavailable"),
    "broken": (RemoteUnavailableError, "500"),
    "reset": (RemoteUnavailableError, "ReadError"),
    "reset at once": (RemoteUnavailableError, "ReadError"),
    "cut off": (RemoteUnavailableError, "peer closed connection"),
    "short": (RemoteContentError, f"75001 bytes are sent, {SIZE} were listed"),
    "long": (RemoteContentError, f"{SIZE + 7} bytes are sent, {SIZE} were listed"),
    "page": (RemoteContentError, "a web page came in place of a .bz2 file"),
    "page as data": (RemoteContentError, f"{len(PAGE)} bytes are sent, {SIZE} were listed"),
    "drip": (RemoteUnavailableError, "bytes/s over"),
    "silent": (RemoteUnavailableError, "ReadTimeout"),
    "silent midway": (RemoteUnavailableError, "ReadTimeout"),
    "compressed": (RemoteContentError, "gzip"),
    "nothing": (RemoteContentError, "204"),
    "loop": (RemoteUnavailableError, "TooManyRedirects"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_is_one_clear_error_and_no_file(server, target, fault):
    server.plan = FaultPlan(faults=(fault,), rate=1.0, budget=1000)
    kind, words = LASTING[fault]
    with pytest.raises(kind) as caught:
        get(server, target, retries=1)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert server.url + NAME in str(caught.value)
    assert not target.exists()
    server.plan = FaultPlan()
    assert get(server, target).sha256 == SHA256
    assert nothing_but(target)


@pytest.mark.parametrize("fault", ["page as data", "unmeasured"])
def test_also_without_a_listed_size_junk_is_no_file(server, target, fault):
    server.plan = FaultPlan(faults=(fault,), rate=1.0, budget=1000)
    with pytest.raises(RemoteContentError):
        get(server, target, size=None, retries=1)
    assert not target.exists()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("forbidden", RemoteRefusedError),
        ("unauthorized", RemoteRefusedError),
        ("teapot", RemoteRefusedError),
        ("missing", RemoteNotFoundError),
    ],
)
def test_what_will_not_get_better_is_not_repeated(server, target, fault, kind):
    server.plan.arrange(NAME, fault)
    with pytest.raises(kind):
        get(server, target)
    assert len(server.log) == 1
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("fault", ["busy", "busy until"])
def test_a_server_that_asks_to_wait_is_left_alone_so_long(server, target, fault):
    server.plan.arrange(NAME, fault)
    server.retry_after = 1 if fault == "busy" else 2  # a date has whole seconds
    begin = time.monotonic()
    get(server, target)
    assert time.monotonic() - begin >= 1.0
    assert len(server.log) == 2


def test_who_asks_for_too_much_patience_is_reported_at_once(server, target):
    server.plan.arrange(NAME, "busy")
    server.retry_after = 3600
    with pytest.raises(RemoteUnavailableError, match=r"429 .*, and to wait 3600 s; run again then"):
        get(server, target)
    assert len(server.log) == 1


@pytest.mark.parametrize("text", ["soon", "-1", "1.5", "\N{SUPERSCRIPT TWO}", "Wed, 99 Foo 2025 10:00:00 GMT", ""])
def test_a_retry_after_that_says_nothing_is_none(server, target, text):
    assert transfer._retry_after(text) == 0.0
    server.plan.arrange(NAME, "busy")
    server.retry_after = text
    get(server, target)


def test_pauses_double_and_differ(monkeypatch, server, target):
    monkeypatch.setattr(transfer, "BACKOFF", 1.0)
    monkeypatch.setattr(transfer, "BACKOFF_MAX", 6.0)
    pauses = []
    server.plan.arrange(NAME, "unavailable", times=5)
    with session(retries=5) as it:
        monkeypatch.setattr(it.stop, "wait", pauses.append)
        download(it, server.url + NAME, target, size=None, etag=None, identity={})
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, [1, 2, 4, 6, 6], strict=True))
    assert len(set(pauses)) == 5


def test_an_attempt_that_got_somewhere_does_not_count(monkeypatch, server, target):
    monkeypatch.setattr(transfer, "FRUITFUL", 1000)
    server.plan.arrange(NAME, "cut off", times=6)  # the last one gets more than 1000 bytes
    assert get(server, target, retries=1).sha256 == SHA256


def test_a_download_that_always_begins_anew_ends(monkeypatch, server, target):
    monkeypatch.setattr(transfer, "FRUITFUL", 1000)
    server.ranges = False
    server.plan = FaultPlan(faults=("cut off",), rate=1.0, budget=1000)
    with pytest.raises(RemoteUnavailableError):
        get(server, target, retries=4)
    assert len(server.log) < 10


def test_the_rest_is_asked_for_and_nothing_else(server, target):
    begun(server, target)
    advanced = []
    with Session(Fetch(), advanced.append) as it:
        received = download(it, server.url + NAME, target, size=SIZE, etag=None, identity=LISTED)
    assert received.sha256 == SHA256
    assert nothing_but(target)
    [request] = server.log
    assert request.range == f"bytes={SIZE // 2}-"
    assert request.headers["if-range"]
    assert request.status == 206
    assert request.sent == SIZE - SIZE // 2
    assert sum(advanced) == SIZE


def test_progress_counts_each_byte_once(server, target):
    server.plan.arrange(NAME, "cut off", "reset", "page as data", "short", "cut off")
    server.ranges = False
    advanced = []
    with Session(Fetch(retries=9), advanced.append) as it:
        download(it, server.url + NAME, target, size=SIZE, etag=None, identity=LISTED)
    assert sum(advanced) == SIZE


@pytest.mark.parametrize("if_range", [True, False], ids=["If-Range heeded", "If-Range ignored"])
@pytest.mark.parametrize("etags", ["nginx", "md5", "weak", "none"])
@pytest.mark.parametrize("dates", [True, False])
def test_a_file_that_changed_meanwhile_is_never_a_mix(server, upstream, target, if_range, etags, dates):
    server.etags, server.dates, server.if_range = etags, dates, if_range
    begun(server, target)
    status = (upstream / NAME).stat()
    (upstream / NAME).write_bytes(OTHER)
    assert (upstream / NAME).stat().st_size == status.st_size
    later = status.st_mtime + 60
    os.utime(upstream / NAME, (later, later))
    assert get(server, target).sha256 == hashlib.sha256(OTHER).hexdigest()
    assert target.read_bytes() == OTHER


@pytest.mark.parametrize("etags", ["nginx", "md5", "weak"])
def test_a_file_that_did_not_change_is_continued(server, target, etags):
    server.etags = etags
    begun(server, target)
    assert get(server, target).sha256 == SHA256
    assert [r.status for r in server.log] == [206]


def test_a_server_without_ranges_sends_all_again(server, target):
    begun(server, target)
    server.ranges = False
    assert get(server, target).sha256 == SHA256
    assert nothing_but(target)


def test_a_part_of_what_was_listed_before_is_of_no_use(server, target):
    begun(server, target)
    assert get(server, target, identity=LISTED | {"modified": "2025-07-03T00:00:00"}).sha256 == SHA256
    assert server.log[0].range is None


def test_a_file_that_shrank_below_its_part(server, upstream, target):
    begun(server, target)
    (upstream / NAME).write_bytes(OTHER[:10])
    assert get(server, target, size=None).sha256 == hashlib.sha256(OTHER[:10]).hexdigest()


def test_a_complete_part_only_gets_its_name(server, target):
    begun(server, target)
    part(target).write_bytes(DATA)
    assert get(server, target).sha256 == SHA256
    assert server.log == []
    assert nothing_but(target)


def test_a_web_page_does_not_cost_what_has_arrived(server, target):
    begun(server, target, size=None)
    server.plan.arrange(NAME, "page")
    assert get(server, target, size=None).sha256 == SHA256
    assert [r.range for r in server.log] == [f"bytes={SIZE // 2}-"] * 2


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", "3", '{"identity": 1}', "\x00\x00", "{}", '{"identity": LISTED}']
)
def test_a_damaged_note_costs_the_part(server, target, damage):
    begun(server, target)
    note(target).write_text(damage.replace("LISTED", json.dumps(LISTED)))
    assert get(server, target).sha256 == SHA256
    assert nothing_but(target)


@pytest.mark.parametrize("damage", ["gone", "empty", "longer", "too long", "a folder's worth"])
def test_a_part_of_any_length_ends_well(server, target, damage):
    begun(server, target)
    if damage == "gone":
        part(target).unlink()
    else:
        length = {"empty": 0, "longer": 100_000, "too long": SIZE + 5, "a folder's worth": 3 * SIZE}[damage]
        part(target).write_bytes((3 * DATA)[:length])
    assert get(server, target).sha256 == SHA256
    assert nothing_but(target)


def test_a_part_whose_bytes_changed_is_caught_by_the_checksum(server, target):
    etag = f'"{hashlib.md5(DATA).hexdigest()}"'
    begun(server, target, etag=etag)
    part(target).write_bytes(bytes(SIZE // 2))
    assert get(server, target, etag=etag).sha256 == SHA256


def test_a_wrong_checksum_is_no_file(server, target):
    with pytest.raises(RemoteContentError, match="the checksum is wrong, it should be d41d8"):
        get(server, target, etag='"d41d8cd98f00b204e9800998ecf8427e"', retries=1)
    assert not target.exists()
    assert len(server.log) == 2


@pytest.mark.parametrize("etag", ['"d41d8cd98f00b204e9800998ecf8427e-3"', '"68650d7a-249f3"', 'W/"x"', "", "x"])
def test_other_etags_are_no_checksums(server, target, etag):
    assert get(server, target, etag=etag).sha256 == SHA256


def test_the_etag_of_an_object_with_a_key_of_its_own_is_no_checksum(server, target):
    server.headers[f"/{NAME}"] = {"x-amz-server-side-encryption": "aws:kms"}
    assert get(server, target, etag='"d41d8cd98f00b204e9800998ecf8427e"').sha256 == SHA256


def test_a_file_that_is_labelled_as_compressed_is_taken_as_it_is(server, upstream, tmp_path):
    """Apache labels `.gz` files so, and S3 those that were uploaded so."""
    content = gzip.compress(DATA)
    (upstream / "a.sql.gz").write_bytes(content)
    server.headers["/a.sql.gz"] = {"Content-Encoding": "x-gzip"}
    get(server, tmp_path / "a.sql.gz", size=None, name="a.sql.gz")
    assert (tmp_path / "a.sql.gz").read_bytes() == content


def test_an_empty_file_is_one_when_it_was_listed_so(server, upstream, target):
    (upstream / NAME).write_bytes(b"")
    assert get(server, target, size=0).sha256 == hashlib.sha256(b"").hexdigest()
    assert target.read_bytes() == b""


def test_an_empty_answer_is_no_file_when_no_size_was_listed(server, upstream, target):
    (upstream / NAME).write_bytes(b"")
    with pytest.raises(RemoteContentError):
        get(server, target, size=None, retries=0)
    assert not target.exists()


def test_redirects_are_followed(server, upstream, target):
    server.elsewhere = f"{server.url}b.json.bz2"
    (upstream / "b.json.bz2").write_bytes(DATA)
    server.plan.arrange(NAME, "elsewhere")
    assert get(server, target).sha256 == SHA256


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/", "http://", "http://[::1/", "data"])
def test_an_address_that_is_none(address):
    with session() as it, pytest.raises(RemoteNotFoundError):
        it.page(address)


def test_a_redirect_to_no_address(server, target):
    server.elsewhere = "http://[::1/"
    server.plan.arrange(NAME, "elsewhere", times=9)
    with pytest.raises((RemoteNotFoundError, RemoteUnavailableError)):
        get(server, target)


def test_nobody_listens(target):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
    with session(retries=1) as it, pytest.raises(RemoteUnavailableError, match=r"ConnectError.*tried 2 times"):
        download(it, address, target, size=1, etag=None, identity={})


def test_a_page_is_complete_or_asked_for_again(server):
    server.plan.arrange("/", "busy", "reset", "cut off", "silent", "drip", "unmeasured")
    with session(retries=9) as it:
        text, address = it.page(server.url)
    assert NAME in text
    assert address == server.url
    assert len(server.log) == 7


def test_a_compressed_page_is_read(server):
    server.plan.arrange("/", "compressed")
    with session() as it:
        assert NAME in it.page(server.url)[0]


def test_a_session_told_to_stop_stops(server, target):
    with session() as it:
        it.advance = lambda n_bytes: n_bytes and it.stop.set()
        with pytest.raises(Stopped):
            download(it, server.url + NAME, target, size=None, etag=None, identity={})
        with pytest.raises(Stopped):
            it.page(server.url)
    assert not target.exists()
    assert 0 < part(target).stat().st_size < SIZE


def test_a_full_disk_says_so_and_room_lets_it_go_on(server, tmp_path):
    with disks.small_disk(tmp_path / "disk", "128k") as disk:
        with pytest.raises(DiskError, match="the disk is full; make room and run again to go on"):
            get(server, disk / NAME)
        assert not (disk / NAME).exists()
        assert len(server.log) == 1
    with disks.small_disk(tmp_path / "larger", "512k") as disk:
        filler = disks.fill(disk)
        with pytest.raises(DiskError):
            get(server, disk / NAME)
        filler.unlink()
        assert get(server, disk / NAME).sha256 == SHA256


def test_a_write_that_is_cut_short_is_a_full_disk_at_once(tmp_path):
    """Room that comes free a moment later would leave a gap that no checksum shows."""
    with disks.small_disk(tmp_path / "disk", "64k") as disk:
        it = Part(disk / NAME, {}, None, None, lambda _: None)
        with pytest.raises(OSError, match="No space") as caught:
            it.write(DATA[:100_000])
        assert caught.value.errno == errno.ENOSPC
        assert it.n_bytes == 0


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(DiskError, match="Is a directory"):
        get(server, tmp_path / NAME)
    with pytest.raises(DiskError, match="No such file"):
        get(server, Path("/proc/nothing") / NAME)


@pytest.mark.parametrize("seed", range(6))
def test_any_mix_of_faults_ends_with_the_file(server, target, seed):
    server.plan = FaultPlan(seed, rate=0.8, budget=6)
    server.if_range, server.etags = seed % 2 == 0, ("nginx", "md5", "weak")[seed % 3]
    assert get(server, target, retries=8).sha256 == SHA256
    assert nothing_but(target)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("forbidden", RemoteRefusedError),
        ("missing", RemoteNotFoundError),
        ("unavailable", RemoteUnavailableError),
        ("reset at once", RemoteUnavailableError),
        ("page", RemoteContentError),
    ],
)
def test_a_password_of_the_address_is_used_and_not_shown(server, target, fault, kind):
    server.plan.arrange(NAME, fault, times=2)
    heard = []
    url = server.url.replace("//", "//me:S3CRET@") + NAME
    with Session(Fetch(retries=1, timeout=0.4), note=heard.append) as it, pytest.raises(kind) as caught:
        download(it, url, target, size=SIZE, etag=None, identity=LISTED)
    assert all(text.startswith(f"{server.url}{NAME}: ") for text in (str(caught.value), *heard))
    assert {request.headers["authorization"] for request in server.log} == {"Basic bWU6UzNDUkVU"}


@pytest.mark.parametrize(
    "url", ["http://me:S3/CRET@127.0.0.1:1/x", "http://me:S3CRET@127.0.0.1:x/", "htp://me:S3CRET@x/"]
)
def test_what_is_wrong_with_an_address_may_be_the_password(url):
    with (
        session() as it,
        pytest.raises(RemoteNotFoundError, match="no web address; see the recipe's section") as caught,
    ):
        it.page(url)
    assert "S3" not in str(caught.value)
