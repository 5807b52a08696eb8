"""OQMD from a real server: the same rows as from the dump, of one moment, and nothing else when something is wrong."""

import gzip
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from servers.mariadb import SERVER, database, mariadb
from sources.conformance import assert_equal, check_source
from trajmill import recipe
from trajmill.errors import MissingExtraError, RecipeError, SourceError
from trajmill.recipe import DatabaseAddress
from trajmill.sources import oqmd_server
from trajmill.sources.base import Record
from trajmill.sources.oqmd import Oqmd
from trajmill.sources.oqmd_import import COLUMNS
from trajmill.sources.oqmd_server import MySQLServer

DUMP = Path(__file__).parent.parent / "data" / "oqmd" / "qmdb__v1_6__112023.sql.gz"
TEXT = gzip.decompress(DUMP.read_bytes())
URL = f"mysql://root@{SERVER}"
T = {"t": ("id", "name", "x")}
CREATE = "CREATE TABLE t (x DOUBLE, id BIGINT PRIMARY KEY, name LONGTEXT CHARACTER SET utf8mb4) ENGINE=InnoDB;"


@pytest.fixture(scope="module")
def unchanged() -> Iterator[str]:
    """Name of a database with the dump's rows, for tests that only read."""
    with database(TEXT) as name:
        yield name


@pytest.fixture
def loaded() -> Iterator[str]:
    """Name of a database with the dump's rows of a test's own."""
    with database(TEXT) as name:
        yield name


@pytest.fixture
def empty() -> Iterator[str]:
    with database() as name:
        yield name


def source(name: str, **options) -> Oqmd:
    return Oqmd(DatabaseAddress.parse(f"{URL}/{name}"), recipe.Oqmd(**options))


def prepared(origin: Oqmd, workspace: Path) -> Oqmd:
    origin.prepare(workspace)
    return origin


def records(origin: Oqmd) -> list[Record]:
    """All records, without what names the place they are from."""
    found = [record for asset in origin.assets() for record in origin.read(asset)]
    anonymous = {"asset": "", "last_modified": None}
    return [
        replace(
            record,
            trajectories=tuple(replace(t, **anonymous) for t in record.trajectories),
            rejections=tuple(replace(r, asset="") for r in record.rejections),
        )
        for record in found
    ]


def read_rows(name: str, wanted=T, **changes) -> list[dict]:
    """Rows of the table `t`; `changes` are set on the server object."""
    with MySQLServer(DatabaseAddress.parse(f"{URL}/{name}"), wanted, report=pytest.fail) as server:
        for key, value in changes.items():
            setattr(server, key, value)
        return [row for _, rows in server.rows(*wanted) for row in rows.to_pylist()]


def test_records_are_those_of_the_dump(unchanged: str, tmp_path: Path):
    ours = prepared(source(unchanged, stress="kbar"), tmp_path / "server")
    theirs = prepared(Oqmd(DUMP, recipe.Oqmd(stress="kbar")), tmp_path / "dump")
    assert_equal(records(ours), records(theirs))
    assert [a.name for a in ours.assets()] == [f"oqmd/{unchanged}/entries-000000000"]


def test_conforms(unchanged: str, tmp_path: Path):
    check_source(source(unchanged), tmp_path / "ws")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trajmill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)


def test_a_store_holds_the_same_rows(unchanged: str, tmp_path: Path):
    def rows(store: Path) -> list[list[dict]]:
        tables = [pq.read_table(file, partitioning=None) for file in sorted(store.glob("role=*/**/*.parquet"))]
        kept = [[name for name in table.column_names if name not in {"asset", "last_modified"}] for table in tables]
        return [table.select(names).to_pylist() for table, names in zip(tables, kept, strict=True)]

    for address, store in ((f"{URL}/{unchanged}", "a"), (DUMP, "b")):
        done = run("build", "--oqmd", address, "--out", tmp_path / store, "--workers", 1)
        assert done.returncode == 0, done.stderr
    ours, theirs = (sorted(rows(tmp_path / store), key=json.dumps) for store in "ab")
    assert sum(map(len, ours)) > 60
    # as text, so that NaN is NaN; the server has taken the sign from zeros
    assert json.dumps(ours) == re.sub(r"-0\.0\b(?!\d)", "0.0", json.dumps(theirs))
    again = run("build", "--oqmd", f"{URL}/{unchanged}", "--out", tmp_path / "a")
    assert "0 assets built, 1 unchanged" in " ".join(again.stdout.split())


def test_every_double_comes_as_it_is(empty: str):
    random = np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64).view(np.float64)
    numbers = [0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1 + 0.2, 1 / 3, 2.0**53 + 2]
    numbers += [1e15, 1e16, 123456789.123456789, 1e-5, 1e22, *random[np.isfinite(random)].tolist()]
    values = ",".join(f"({x!r},{i},NULL)" for i, x in enumerate(numbers))
    mariadb("", stdin=f"{CREATE} INSERT INTO t VALUES {values};".encode(), database=empty)
    found = [row["x"] for row in read_rows(empty)]
    assert [struct.pack("d", x) for x in found] == [struct.pack("d", x) for x in numbers]


@pytest.mark.parametrize("page", [1, 100])
def test_every_text_and_integer_comes_as_it_is(empty: str, monkeypatch: pytest.MonkeyPatch, page: int):
    monkeypatch.setattr(oqmd_server, "_PAGE", page)  # one odd row makes its whole page be read row by row
    texts = [
        None,
        "",
        "NULL",
        "it's",
        '"',
        "\\",
        "\\'",
        "a\nb",
        "),(",
        "),\n(",
        "\0\x1a\t\r\b",
        "\x01\\n",
        "Å 電 🙂",
        "%_\\%",
    ]
    ids = [-(2**63), -1, *range(1, len(texts) - 2), 2**63 - 1]
    hexes = ("NULL" if text is None else f"CONVERT(X'{text.encode().hex()}' USING utf8mb4)" for text in texts)
    values = ",".join(f"(NULL,{i},{text})" for i, text in zip(ids, hexes, strict=True))
    mariadb("", stdin=f"{CREATE} INSERT INTO t VALUES {values};".encode(), database=empty)
    assert read_rows(empty) == [{"id": i, "name": text, "x": None} for i, text in zip(ids, texts, strict=True)]


def test_pages_shrink_to_what_the_server_may_send(empty: str):
    values = ",".join(f"(0.5,{3 * i},REPEAT('x',{i}))" for i in range(300))
    mariadb("", stdin=f"{CREATE} INSERT INTO t VALUES {values};".encode(), database=empty)
    rows = [{"id": 3 * i, "name": "x" * i, "x": 0.5} for i in range(300)]
    limit = "SET SESSION group_concat_max_len = "
    with MySQLServer(DatabaseAddress.parse(f"{URL}/{empty}"), T, report=pytest.fail) as server:
        server._query(limit + "1024")
        server._longest = 1024
        assert [row for _, some in server.rows("t") for row in some.to_pylist()] == rows
        server._query(limit + "200")
        server._longest = 200
        with pytest.raises(SourceError, match=r"row of table t after id 5\d\d is longer than the server may send"):
            list(server.rows("t"))


def test_a_second_run_reads_only_what_changed(loaded: str, tmp_path: Path):
    def prepare() -> tuple[Oqmd, int]:
        told: list[tuple[int, int]] = []
        origin = source(loaded)
        origin.prepare(tmp_path, lambda *numbers: told.append(numbers))
        return origin, len(told)

    mariadb("INSERT INTO entries (id, path, duplicate_of_id) VALUES (700000, '/b', 700000)", database=loaded)
    first, pages = prepare()
    digests = [first.raw_digest(a) for a in first.assets()]
    assert pages == 4
    assert len(digests) == 2
    assert prepare()[1] == 0, "nothing changed, nothing is read"
    mariadb("UPDATE entries SET path = '/c' WHERE id = 700000", database=loaded)
    second, pages = prepare()
    assert pages == 4, "something did"
    assert [second.raw_digest(a) for a in second.assets()] == digests, "but nothing that rows are made of"
    mariadb("UPDATE entries SET duplicate_of_id = 19001 WHERE id = 700000", database=loaded)
    third, _ = prepare()
    now = [third.raw_digest(a) for a in third.assets()]
    assert now[0] == digests[0]
    assert now[1] != digests[1]


def test_what_is_read_is_of_one_moment(loaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    expected = records(prepared(source(loaded), tmp_path / "before"))
    monkeypatch.setattr(oqmd_server, "_PAGE", 40)
    changed = []

    def change(*_: int) -> None:
        if not changed:
            changed.append(mariadb("DELETE FROM atoms; UPDATE calculations SET energy = 0", database=loaded))

    origin = source(loaded)
    mariadb("UPDATE entries SET path = CONCAT(path, 'x')", database=loaded)  # else there would be nothing to read
    origin.prepare(tmp_path / "during", change)
    assert changed
    assert_equal(records(origin), expected)
    assert records(prepared(source(loaded), tmp_path / "during"))[0].n_frames == expected[0].n_frames
    with MySQLServer(source(loaded).dump, COLUMNS, report=pytest.fail) as server:
        digest = server.digest()
        mariadb("UPDATE structures SET x1 = 0", database=loaded)
        assert server.digest() == digest


def test_a_lost_connection_is_said_and_made_up_for(loaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(oqmd_server, "_PAGE", 40)
    told = []

    def kill(*numbers: int) -> None:
        told.append(numbers)
        if len(told) == 6:
            for (number,) in mariadb(f"SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '{loaded}'"):
                mariadb(f"KILL {number}")

    with pytest.raises(SourceError, match=r"; run again when it answers$") as error:
        source(loaded).prepare(tmp_path, kill)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    assert len(records(prepared(source(loaded), tmp_path))) == 40


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DROP TABLE atoms", "no table atoms; is this a database of OQMD"),
        ("ALTER TABLE atoms DROP COLUMN magmom", r"table atoms has no column magmom \(it has id, structure_id"),
        (
            "DROP TABLE entries; CREATE TABLE entries (id INT KEY, duplicate_of_id INT) ENGINE=MyISAM",
            "table entries is MyISAM, which cannot be read as of one moment",
        ),
        ("DROP TABLE entries; CREATE VIEW entries AS SELECT 1 AS id, 1 AS duplicate_of_id", "table entries is a view"),
        ("ALTER TABLE atoms MODIFY id INT, DROP PRIMARY KEY", "`id` is no key of table atoms"),
    ],
)
def test_what_is_no_database_of_oqmd_is_refused(loaded: str, tmp_path: Path, sql: str, message: str):
    mariadb(f"SET foreign_key_checks = 0; {sql}", database=loaded)
    with pytest.raises(SourceError, match=message) as error:
        source(loaded).prepare(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("mysql://root:s3cret@{server}/{name}", "Access denied for user 'root'@"),
        ("mysql://root:s3cret@127.0.0.1:1/{name}", "Can't connect to MySQL server on '127.0.0.1'"),
        ("mysql://root@{server}/none_of_this_name", "Unknown database 'none_of_this_name'"),
        ("mysql://root:s3cret@{server}", "write it as mysql://host:port/database, with user:password@"),
        ("mysql://root:s3cret@{server}:x/{name}", "write it as mysql://host:port/database, with user:password@"),
    ],
)
def test_a_wrong_address_is_one_line(unchanged: str, tmp_path: Path, address: str, message: str):
    done = run("build", "--oqmd", address.format(server=SERVER, name=unchanged), "--out", tmp_path / "store")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert message in line
    assert "s3cret" not in done.stderr + done.stdout


def test_a_database_is_not_fetched(tmp_path: Path):
    done = run("fetch", "oqmd", "--set", f"oqmd.path='{URL}/qmdb'")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is a database, which is built and not fetched" in done.stderr


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(MissingExtraError, match=r"trajmill\[mysql\]"):
        source("qmdb").prepare(tmp_path)


def test_addresses():
    address = DatabaseAddress.parse("mysql://us%40er:p%2Fw@[::1]:3307/qmdb")
    assert (address.user, address.password, address.host, address.port) == ("us@er", "p/w", "::1", 3307)
    assert "p/w" not in f"{address} {address!r}"
    assert DatabaseAddress.parse("mysql://db.example.org/qmdb").port == 3306
    with pytest.raises(RecipeError, match="percent-encoded"):
        DatabaseAddress.parse("mysql://h/a/b")


def test_a_server_that_rounds_is_refused(unchanged: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(oqmd_server._AS_TEXT, pa.float64(), "IFNULL(`{0}`,'NULL')")  # MariaDB cuts that off
    with pytest.raises(SourceError, match=r"this server rounds numbers \(-2\.22"):
        source(unchanged).prepare(tmp_path)
