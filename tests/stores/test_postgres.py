"""The PostgreSQL store beyond what every store does: what it leaves behind, how it fails, what SQL users see."""

import json
import signal
import subprocess
import sys

import pytest

import chores
import fakes
import trajmill
from making import DATA, content
from servers import postgres
from servers.postgres import sql
from stores.conformance import frames, put, run_until_killed, tasks, write
from trajmill.copying import copy
from trajmill.errors import MissingExtraError, StoreError
from trajmill.recipe import load
from trajmill.releases.hugging_face import release
from trajmill.schema import FILE_SCHEMA
from trajmill.stores import open_store, shown, work_folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def address():
    with postgres.schema() as address:
        yield address


@pytest.fixture
def store(address):
    return open_store(address, create=True)


def name_of(address):
    return address.partition("schema=")[2].partition("&")[0]


def staged(address):
    """Names of the staging tables that are there."""
    query = "SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename LIKE 'staged#_%' ESCAPE '#'"
    return sorted(name for (name,) in sql(query, name_of(address)))


def end_sessions(address):
    """End all sessions with a store, as a server that restarts does; return how many there were."""
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1"
    ((n,),) = sql(query, name_of(address))
    return n


def refused(address, **options):
    with pytest.raises(StoreError) as caught:
        open_store(address, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what SQL users see


def test_plain_columns_with_their_meaning(store, address):
    put(store, "mp/a", frame=[frames("t-1", n_frames=2, n_atoms=3)])
    schema = name_of(address)
    ((positions, symbols, size, asset),) = sql(
        f"""SELECT cartesian_site_positions, species_at_sites, nelements, asset
            FROM {schema}.frame WHERE id = 't-1-pbe-1'"""
    )
    (batch,) = store.read("frame")
    row = batch.to_pylist()[1]
    assert positions == [x for site in row["cartesian_site_positions"] for x in site]
    assert (symbols, size, asset) == (row["species_at_sites"], row["nelements"], "mp/a")
    notes = dict(
        sql(
            """SELECT attname, col_description(attrelid, attnum) FROM pg_attribute
               WHERE attrelid = to_regclass($1) AND attnum > 0""",
            f"{schema}.frame",
        )
    )
    assert list(notes) == [*FILE_SCHEMA.names, "asset", "position"]
    assert notes["energy"].endswith("null in initial structures. Unit: eV.")
    assert notes["forces"].startswith("Row by row: x, y, z of the first")
    indexed = "\n".join(d for (d,) in sql("SELECT indexdef FROM pg_indexes WHERE schemaname = $1", schema))
    for columns in ("(id)", "(trajectory_id)", "(source, functional)"):
        assert f"{schema}.frame USING btree {columns}" in indexed


def test_the_default_schema(monkeypatch):
    assert name_of(postgres.SERVER) == ""
    with postgres.schema() as address:
        open_store(address, create=True)
        assert sql("SELECT to_regclass($1) IS NOT NULL", f"{name_of(address)}.store") == [(True,)]
    assert shown(f"{postgres.SERVER}?schema=x&password=secret") == "postgresql://127.0.0.1:5432/test"


# --- what is no store


def test_a_schema_of_something_else_is_left_alone(address):
    schema = name_of(address)
    sql(f"CREATE SCHEMA {schema}")
    sql(f"CREATE TABLE {schema}.thesis (page int)")
    assert f"schema {schema}: not empty and no trajmill store; choose another schema" in refused(address, create=True)
    assert sql("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema) == [("thesis",)]


def test_another_data_model_is_refused(store, address):
    sql(f"UPDATE {name_of(address)}.store SET data_model = 99")
    assert "has data model 99, this version of trajmill reads 1" in refused(address)


def test_a_database_that_cannot_hold_all_text_is_refused():
    with postgres.schema() as address:
        name = name_of(address)
        sql_alone = f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
        sql(sql_alone, autocommit=True)
        try:
            other = address.replace("/test?", f"/{name}?")
            assert "the database is in LATIN1; make one with ENCODING 'UTF8'" in refused(other, create=True)
        finally:
            sql(f"DROP DATABASE {name} (FORCE)", autocommit=True)


def test_older_versions_are_not_kept(store, address):
    put(store, "mp/a")
    message = "version 0 is not there, only the newest, 1; a Delta Lake store keeps them all"
    assert message in refused(address, version=0)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("postgresql://u:se/cret@127.0.0.1/test", "not an address of a database; write postgresql://user:password@"),
        ("postgresql://u:secret@127.0.0.1:5x/test", "not an address of a database"),
        ("postgresql://u:secret@127.0.0.1:5432", "not an address of a database"),
        ("postgresql://u:secret@127.0.0.1:1/test", "port 1 failed: Connection refused"),
        ("postgresql://u:secret@127.0.0.1:1/test?passwort=secret", 'invalid URI query parameter: "passwort"'),
        ("postgresql://u:s%40ecret@127.0.0.1:1/test?password=secret", "Connection refused"),
    ],
)
def test_an_address_that_leads_nowhere(address, message):
    for create in (False, True):
        text = refused(address, create=create)
        assert message in text
        for part in ("secret", "se/cret", "cret@"):
            assert part not in text


def test_what_the_server_refuses_is_one_line(address):
    server = postgres.SERVER.rpartition("/")[0]
    assert 'database "none_such" does not exist' in refused(f"{server}/none_such")
    nobody = server.replace("postgres@", "nobody:secret@")
    text = refused(f"{nobody}/test")
    assert "secret" not in text
    assert 'role "nobody" does not exist' in text or "password authentication failed" in text


def test_one_who_may_not_write(store, address):
    role = name_of(address)
    put(store, "mp/a")
    sql(f"CREATE ROLE {role} LOGIN")
    try:
        guest = address.replace("postgres@", f"{role}@")
        assert "permission denied for schema" in refused(guest) or "no trajmill store here" in refused(guest)
        sql(f"GRANT USAGE ON SCHEMA {role} TO {role}")
        sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA {role} TO {role}")
        reader = open_store(guest)
        assert len(tasks(reader)) == 3
        with pytest.raises(StoreError, match="permission denied"):
            put(reader, "mp/b")
        with pytest.raises(StoreError, match="permission denied"):
            reader.drop("mp/a")
        assert len(tasks(reader)) == 3
        del reader
    finally:
        end_sessions(address)
        sql(f"DROP OWNED BY {role}")
        sql(f"DROP ROLE {role}")


def test_a_missing_driver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "adbc_driver_postgresql.dbapi", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trajmill\[postgres\]'"):
        open_store("postgresql://127.0.0.1:1/test")


# --- killed, gone


def test_a_worker_killed_while_writing_leaves_no_table(store, address):
    run_until_killed(address, "writing")
    chores.wait_for(lambda: staged(address) == [], what="the server to notice")


def test_what_a_killed_build_left_is_cleared_by_the_next_that_is_alone(store, address):
    run_until_killed(address, "closed")
    assert len(staged(address)) == 1
    with store.locked():
        assert staged(address) == []
        lost = write(store, "mp/b")
        assert len(staged(address)) == 2
        with open_store(address).locked():
            assert len(staged(address)) == 2, "a build beside must not lose its rows"
    with open_store(address).locked():
        assert staged(address) == []
    put(store, "mp/a")
    with pytest.raises(StoreError, match="0 of 3 rows staged for mp/b are there; run the command again"):
        store.commit(lost)
    assert store.assets() == ["mp/a"]
    assert staged(address) == []


def test_a_commit_killed_on_its_way_is_undone(store, address):
    put(store, "mp/a", frame=[frames("old", n_frames=1)])
    killed = """
import os, signal, sys
from stores.conformance import frames, put, rejections
from trajmill.stores import open_store, postgres
move = postgres.PostgresStore._move
def die(self, file, asset):
    move(self, file, asset)
    if file.role == "rejection":
        os.kill(os.getpid(), signal.SIGKILL)
postgres.PostgresStore._move = die
put(open_store(sys.argv[1]), "mp/a", "changed", frame=[frames("new")], rejection=[rejections("r")])
"""
    done = subprocess.run([sys.executable, "-c", killed, address], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    after = open_store(address)
    assert (after.version, tasks(after), after.count("rejection")) == (1, [("mp/a", "old")], {})
    put(after, "mp/a", "changed", frame=[frames("new", n_frames=1)])
    assert tasks(after) == [("mp/a", "new")]


def test_a_crashed_server_empties_what_was_staged(store, address):
    """Staging tables are not logged: after a crash they are there, and empty."""
    commit = write(store, "mp/a")
    sql(f"TRUNCATE {name_of(address)}.{commit.files[0].path}")
    with pytest.raises(StoreError, match="rows staged for mp/a are there"):
        store.commit(commit)
    assert (store.version, store.assets()) == (0, [])


def test_a_session_that_ends(store, address):
    put(store, "mp/a", frame=[frames("old", n_frames=1)])
    writer = store.writer("mp/a")
    writer.write("frame", frames("new"))
    rows = store.read("frame")
    assert end_sessions(address) >= 2
    for act in (
        lambda: writer.write("frame", frames("new")),
        lambda: writer.close("f" * 64, {}),
        lambda: list(rows),
        lambda: store.version,
        lambda: put(store, "mp/b"),
        lambda: store.drop("mp/a"),
    ):
        with pytest.raises(StoreError, match=r"\(what was committed before is unharmed\)$") as caught:
            act()
        assert "\n" not in str(caught.value)
    writer.abort()
    assert tasks(open_store(address)) == [("mp/a", "old")]


# --- builds


def build_fake(raw, address, workers=1):
    return subprocess.Popen(
        [sys.executable, "-m", "fakes", raw, address, str(workers)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def raw(tmp_path):
    for i, name in enumerate("abcd"):
        fakes.write_raw(tmp_path / "raw", name, seed=i, records=40 if name == "a" else 12 - i)
    fakes.write_facts(tmp_path / "raw")
    return tmp_path / "raw"


def same_rows(a, b):
    return all(
        x.equals(y) for role in ("frame", "input", "rejection") for x, y in zip(a.read(role), b.read(role), strict=True)
    )


def finished(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def test_builds_side_by_side_end_as_one(raw, address, tmp_path):
    finished(build_fake(raw, str(tmp_path / "delta")))
    both = [build_fake(raw, address), build_fake(raw, address)]
    assert {name for process in both for name in finished(process)["built"]} == {f"mp/{x}.raw" for x in "abcd"}
    expected, store = open_store(tmp_path / "delta"), open_store(address)
    assert same_rows(expected, store)
    assert store.commits().keys() == expected.commits().keys()
    assert staged(address) == []
    assert finished(build_fake(raw, address))["built"] == []


@pytest.mark.parametrize("phase", ["middle", "written"])
def test_a_build_killed_as_a_whole_goes_on(raw, address, tmp_path, phase):
    finished(build_fake(raw, str(tmp_path / "delta")))
    control = fakes.arrange(raw, "mp/b.raw", phase, "pause")
    process = build_fake(raw, address)
    worker = chores.wait_for(lambda: fakes.paused(control), what=phase)
    process.kill()
    process.communicate()
    control.unlink()
    chores.wait_for(lambda: not chores.alive(worker), what="the worker to end")
    assert "mp/b.raw" not in open_store(address).assets()
    finished(build_fake(raw, address))
    assert same_rows(open_store(tmp_path / "delta"), open_store(address))
    assert staged(address) == []


def test_sessions_that_end_in_a_build_are_one_line_and_it_goes_on(raw, address, tmp_path):
    finished(build_fake(raw, str(tmp_path / "delta")))
    control = fakes.arrange(raw, "mp/b.raw", "middle", "pause")
    process = build_fake(raw, address)
    chores.wait_for(lambda: fakes.paused(control), what="the middle of b")
    assert end_sessions(address) >= 2
    control.unlink()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("error: postgresql://")
    assert err.endswith("(what was committed before is unharmed)\n")
    finished(build_fake(raw, address))
    assert same_rows(open_store(tmp_path / "delta"), open_store(address))


def test_the_samples_give_the_same_release(address, tmp_path):
    """Frames, inputs and rejections of three sources; file by file, byte by byte."""
    samples = {"mp": "mp/derived", "alexandria": "alexandria", "oqmd": "oqmd/qmdb__v1_6__112023.sql.gz"}
    settings = [f"{name}.path='{DATA / path}'" for name, path in samples.items()]
    settings += ["engine.workers=1", "annotation.space_group=false"]
    for place in (tmp_path / "delta", address):
        summary = trajmill.build(load(settings=[*settings, f"store.path='{place}'"]))
        assert not summary.failed
    stores = [open_store(place) for place in (tmp_path / "delta", address)]
    assert same_rows(*stores)
    assert stores[0].version == stores[1].version
    for store, out in zip(stores, ("a", "b"), strict=True):
        release(store, tmp_path / out, load())
    files = [
        {p.relative_to(tmp_path / out).as_posix(): p.read_bytes() for p in (tmp_path / out).rglob("*") if p.is_file()}
        for out in ("a", "b")
    ]
    assert files[0].keys() == files[1].keys()
    assert [name for name in files[0] if files[0][name] != files[1][name]] == []
    assert "mp" in {p.name for p in work_folder(address).iterdir()}
    # a copy into a folder has the very files, and nothing is left to build there
    target = open_store(tmp_path / "copy", create=True)
    copy(stores[1], target)
    assert content(tmp_path / "copy") == content(tmp_path / "delta")
    assert trajmill.build(load(settings=[*settings, f"store.path='{tmp_path / 'copy'}'"])).built == {}


def trajmill_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "trajmill.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_command_line(address, tmp_path):
    raw = DATA / "alexandria"
    done = trajmill_command("build", "--alexandria", raw, "--out", address, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("postgresql://127.0.0.1:5432/test: version ")
    info = trajmill_command("info", address)
    assert info.returncode == 0, info.stderr
    assert "ok: kept + rejected = read" in info.stdout
    why = trajmill_command("rejections", address, "--rule", "elements")
    assert "Yb" in why.stdout
    assert trajmill_command("release", address, tmp_path / "out").returncode == 0
    dataset, released = trajmill.open(address), trajmill.open(tmp_path / "out")
    assert len(dataset) == len(released) == 580
    assert [t.trajectory_id for t in dataset.trajectories()]
    some = trajmill.open(address, functional="pbesol", source="alexandria")
    assert 0 < len(some) == sum(len(t) for t in some.trajectories()) < 580
    other = address.replace("&", "_not&")
    for command in (["info", other], ["rejections", other], ["release", other, tmp_path / "new"]):
        failed = trajmill_command(*command)
        assert failed.returncode == 2
        assert len(failed.stderr.splitlines()) == 1
