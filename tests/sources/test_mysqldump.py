"""The mysqldump reader: every row arrives exactly, whatever the text holds, and nothing is lost in silence."""

import gzip
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servers.mariadb import database, mariadb
from trajmill.errors import SourceError
from trajmill.sources import mysqldump
from trajmill.sources.mysqldump import MySQLDump

DATA = Path(__file__).parent.parent / "data" / "oqmd"
CREATE = (
    "CREATE TABLE `t` (\n  `id` int NOT NULL AUTO_INCREMENT,\n  `name` longtext,\n  `x` double DEFAULT NULL,\n"
    "  PRIMARY KEY (`id`)\n) ENGINE=InnoDB;\n"
)
COLUMNS = {"t": ("id", "name", "x")}
ESCAPES = {"\\": r"\\", "'": r"\'", '"': r"\"", "\n": r"\n", "\r": r"\r", "\0": r"\0", "\x1a": r"\Z"}
AWKWARD = ["", "NULL", "it's", '"', "\\", "\\'", "\\\\n", "a\nb", "),(", "),\n(", ");\n", "\0\x1a\t\r\b", "\x01\\n"]
AWKWARD += ["Å 電", "%_\\%", "--", "/*"]


def quote(text: str | None) -> str:
    return "NULL" if text is None else "'" + "".join(ESCAPES.get(c, c) for c in text) + "'"


def insert(rows: list[tuple[object, ...]]) -> str:
    values = ",".join(f"({i},{quote(name)},{'NULL' if x is None else repr(x)})" for i, name, x in rows)
    return f"INSERT INTO `t` VALUES {values};\n"


def read(path: Path, text: str | bytes, columns=COLUMNS) -> tuple[list[dict], list[str]]:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    problems: list[str] = []
    dump = MySQLDump(path, columns, report=problems.append)
    return [row for _, table in dump.rows(*columns) for row in table.to_pylist()], problems


def expected(rows: list[tuple[object, ...]]) -> list[dict]:
    return [dict(zip(COLUMNS["t"], row, strict=True)) for row in rows]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dump.sql"


@pytest.mark.parametrize("exact", [False, True], ids=["at once", "row by row"])
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_arrives_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch, text: str, exact: bool):
    if exact:
        monkeypatch.setattr(mysqldump, "_MASK", b"(")  # every statement holds it
    rows = [(1, text, 1.5), (2, None, None), (3, text + "x" + text, -1e-05)]
    assert read(path, CREATE + insert(rows)) == (expected(rows), [])


ROW = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    st.none() | st.text(st.characters(exclude_categories=["Cs"])) | st.text("'\\\"),(\nn0%;\x01"),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)


@given(st.lists(st.lists(ROW, min_size=1, max_size=4), max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
def test_any_rows_round_trip(path: Path, statements: list[list[tuple[object, ...]]]):
    rows = [row for statement in statements for row in statement]
    assert read(path, CREATE + "".join(map(insert, statements))) == (expected(rows), [])


@given(st.lists(ROW, min_size=1, max_size=6), st.sampled_from(["", "()", ",(1,'a')", ",(2,'b',x)", "\\"]))
@settings(deadline=None, max_examples=300)
def test_both_parsers_agree(rows: list[tuple[object, ...]], more: str):
    """What the fast parser takes is what the exact one reads; what it does not take, it leaves to that one."""
    values = insert(rows).removeprefix("INSERT INTO `t` VALUES ").removesuffix(";\n") + more
    table = mysqldump.Table("t", {"id": pa.int64(), "name": pa.binary(), "x": pa.float64()}, COLUMNS["t"])
    _, found, problems = mysqldump.parse(mysqldump.Statement(table, values.encode()))
    exact, reasons = mysqldump._parse_rows(table, values.encode())
    assert found.to_pylist() == exact.to_pylist()
    assert problems == reasons


@pytest.mark.parametrize(
    "values",
    [
        "(1,'a''b',2),(2,'c',3)",  # a doubled quote
        "\n(1,'a\\'b',2),\n(2,'c',3)",  # one row a line, as newer mariadb-dump writes
        "(1, 'a\\'b' , '2'), (2,'c',3)",  # spaces
    ],
)
def test_other_ways_to_write_values(path: Path, values: str):
    assert read(path, f"{CREATE}INSERT INTO `t` VALUES {values};\n")[0] == expected([(1, "a'b", 2.0), (2, "c", 3.0)])


def test_raw_newlines_stay_in_the_string(path: Path):
    text = f"{CREATE}INSERT INTO `t` VALUES (1,'a);\nINTO\n',2);\n"
    assert read(path, text)[0] == expected([(1, "a);\nINTO\n", 2.0)])


def test_columns_are_found_by_name(path: Path):
    create = "CREATE TABLE `t` (\n  `x` double,\n  `other` longtext,\n  `name` varchar(9),\n  `id` bigint(20)\n);\n"
    text = create + "INSERT INTO `t` VALUES (1.5,'),(','a',7);\nINSERT INTO `t` (`id`,`x`,`name`) VALUES (8,2.5,'b');\n"
    assert read(path, text)[0] == expected([(7, "a", 1.5), (8, "b", 2.5)])


@pytest.mark.parametrize(("raw", "text"), [(b"\xc3\x85", "Å"), (b"\xc5", "Å"), (b"\xc5\\'\xff", "Å'ÿ")])
def test_text_is_utf8_else_latin1(path: Path, raw: bytes, text: str):
    dump = CREATE.encode() + b"INSERT INTO `t` VALUES (1,'" + raw + b"',NULL),(2,'ok',NULL);\n"
    assert read(path, dump)[0] == expected([(1, text, None), (2, "ok", None)])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("(9,'x')", "2 values for 3 columns"),
        ("(9,'x','y')", "'y'"),
        ("(9.5,'x',1)", "9.5"),
        ("(9223372036854775808,'x',1)", "out of range"),
        ("(9,x'y,1)", "not closed"),
        ("()", "not closed"),
    ],
)
def test_a_bad_row_costs_that_row(path: Path, bad: str, reason: str):
    rows, problems = read(
        path, f"{CREATE}INSERT INTO `t` VALUES (1,'a',2),{bad},(2,'b\\'',3);\n{insert([(4, 'c', 5.0)])}"
    )
    assert rows == expected([(1, "a", 2.0), (2, "b'", 3.0), (4, "c", 5.0)])
    [problem] = problems
    assert problem.startswith("row of table t cannot be read")
    assert reason in problem
    assert bad[:4] in problem


def test_a_lost_quote_costs_one_statement(path: Path):
    rows, problems = read(path, f"{CREATE}INSERT INTO `t` VALUES (1,'a',2),(2,'b,3);\n{insert([(4, 'c', 5.0)])}")
    assert rows == expected([(1, "a", 2.0), (4, "c", 5.0)])
    assert len(problems) == 1


@pytest.mark.parametrize("part", [0.3, 0.5, 0.9])
def test_truncated_gzip_gives_what_is_before_the_end(path: Path, part: float):
    good = [(i, f"row {i * 7919 % 10007}", i / 7) for i in range(60_000)]
    raw = gzip.compress((CREATE + "".join(insert(good[i : i + 500]) for i in range(0, len(good), 500))).encode())
    rows, problems = read(path, raw[: int(len(raw) * part)])
    assert rows == expected(good)[: len(rows)]
    assert 0.9 * part - 0.05 < len(rows) / len(good) < part + 0.05
    assert sum("gzip data ends or breaks" in problem for problem in problems) == 1


def test_a_gzip_of_several_members_is_read_to_its_end(path: Path):
    rows = [(1, "a", 1.0), (2, "b", 2.0)]
    members = gzip.compress((CREATE + insert(rows[:1])).encode()) + gzip.compress(insert(rows[1:]).encode())
    assert read(path, members + b"\0" * 100) == (expected(rows), [])


@pytest.mark.parametrize("end", ["INSERT INTO `t` VALUES (2,'b',3),(3,'c", ""])
def test_a_plain_file_cut_off_is_reported(path: Path, end: str):
    rows, problems = read(path, f"{CREATE}LOCK TABLES `t` WRITE;\n{insert([(1, 'a', 2.0)])}{end}")
    assert rows == expected([(1, "a", 2.0), (2, "b", 3.0)])[: 2 if end else 1]
    assert problems[-1] == "the dump ends in the middle of table t"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        ("<!DOCTYPE html><html>404</html>", "not an SQL dump .an HTML page.; fetch it again"),
        ('{"error": 1}\n', "not an SQL dump .it begins with"),
        (b"PK\x03\x04zip", "not an SQL dump"),
        ("-- MySQL dump 10.13\n", "no CREATE TABLE for t; is this a mysqldump"),
        (insert([(1, "a", 2.0)]), "before its CREATE TABLE"),
        (CREATE.replace("`x`", "`y`"), r"table t has no column x \(it has id, name, y\)"),
        (CREATE + "INSERT INTO `t` (`id`,`x`) VALUES (1,2);\n", "gives no name"),
        (gzip.compress(b"-- MySQL dump\n" * 99)[:-20], "gzip data ends .*: fetch the dump again"),
    ],
)
def test_what_is_no_dump_is_refused_in_one_line(path: Path, text: str | bytes, message: str):
    with pytest.raises(SourceError, match=message) as error:
        read(path, text)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(SourceError, match=r"none\.sql: cannot be read"):
        list(MySQLDump(tmp_path / "none.sql", COLUMNS, report=print).rows("t"))


def test_memory_depends_on_a_statement_not_on_the_file(path: Path):
    statement = insert([(i, "text " * 20, i / 7) for i in range(2000)])  # 0.26 MB
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(CREATE)
        for _ in range(120):
            file.write(statement)
    before = pa.total_allocated_bytes()
    arrow = rows = 0
    tracemalloc.start()
    for _, table in MySQLDump(path, COLUMNS, report=print).rows("t"):
        rows += len(table)
        arrow = max(arrow, pa.total_allocated_bytes() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 240_000
    assert arrow < 2 * (mysqldump._THREADS + 2) * len(statement)
    assert python < 10 << 20  # 31 MB of text went through; chunks read ahead take 4 MB


@pytest.fixture(scope="module")
def loaded() -> Iterator[str]:
    """Name of a database that MariaDB itself loaded the generated dump into."""
    with database(gzip.decompress((DATA / "qmdb__v1_6__112023.sql.gz").read_bytes())) as name:
        yield name


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("atoms", "id structure_id element_id x y z fx fy fz magmom occupancy"),
        ("calculations", "id configuration label entry_id path settings input_id output_id energy nsteps converged"),
        ("entries", "id path label duplicate_of_id composition_id natoms"),
        ("structures", "id entry_id label x1 y3 z3 sxx szx energy fit_id coords"),
    ],
)
def test_mariadb_reads_the_same(loaded: str, table: str, columns: str):
    texts = {"element_id", "configuration", "label", "path", "settings", "composition_id", "fit_id", "coords"}
    dump = MySQLDump(DATA / "qmdb__v1_6__112023.sql.gz", {table: columns.split()}, report=pytest.fail)
    rows = [tuple(row.values()) for _, rows in dump.rows(table) for row in rows.to_pylist()]
    ours = sorted(rows, key=lambda row: row[0])
    select = ", ".join(f"HEX(CONVERT({c} USING utf8mb4))" if c in texts else c for c in columns.split())

    def value(column: str, text: str) -> object:
        return None if text == "NULL" else bytes.fromhex(text).decode() if column in texts else float(text)

    theirs = mariadb(f"SELECT {select} FROM {table} ORDER BY id", database=loaded)
    assert ours
    assert ours == [tuple(map(value, columns.split(), row)) for row in theirs]
