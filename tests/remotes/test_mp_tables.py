"""Materials Project tables from S3: what is copied builds the same dataset, and no more is transferred than needed."""

import json
import os
import shutil
import string
import struct
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, WriterProperties, write_deltalake

from disks import fill, small_disk
from mp_samples import (
    DATA,
    MATERIALS,
    REAL,
    TASKS,
    by_id,
    documents,
    material_row,
    opened,
    records,
    task_row,
    write_tables,
)
from servers.moto_s3 import s3_server
from trajmill import recipe
from trajmill.curation import curate
from trajmill.errors import (
    DiskError,
    RemoteContentError,
    RemoteNotFoundError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from trajmill.fetcher import fetch
from trajmill.raw import RawManifest
from trajmill.remotes import parquet_copy, transfer
from trajmill.remotes.mp_tables import MaterialsProjectTables
from trajmill.remotes.s3 import Bucket
from trajmill.remotes.transfer import Session, Stopped
from trajmill.sources.materials_project_delta import LEFT_OUT, MaterialsProjectDelta

SAMPLE = pq.read_table(DATA / "core_trajectories_sample.parquet")
ROWS = SAMPLE.to_pylist()
MATERIAL_ROWS = [
    material_row(m, "2025.9.25") for m in documents(REAL / "materials" / "materials_from_emmet_builder.jsonl.gz")
]
SIC = "aaafgddy"  # mp-fgddy, a task of mp-8062
HEAVY = ("cart_coords", "lattice", "e_fr_energy", "forces", "stress", "electronic_steps")
FAST = recipe.Fetch(retries=2, timeout=5)
TRAJECTORIES = "core/trajectories"


def row(sample=SIC, **changes):
    return next(r for r in ROWS if r["identifier"] == sample) | changes


def table(*rows):
    return pa.Table.from_pylist(list(rows), SAMPLE.schema)


def sic_task(**changes):
    """Return the `core/tasks` row of SiC; incar goes into its input."""
    found = next(t for t in documents(REAL / "tasks" / "emmet_SiC_elastic.jsonl.gz") if t["task_id"] == "mp-fgddy")
    made = task_row(found)
    made["input"]["incar"] = changes.pop("incar", made["input"]["incar"])
    return made | changes


def licensed(**licences):
    """Return the materials with other licences, `mp_8062="BY-NC"`."""
    return [
        m
        | {"builder_meta": {"license": licences.get(m["material_id"].replace("-", "_"), m["builder_meta"]["license"])}}
        for m in MATERIAL_ROWS
    ]


@pytest.fixture(autouse=True)
def _plain(monkeypatch, tmp_path):
    """Hurry, and hide every credential and setting of S3 that this machine may have."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


@pytest.fixture
def s3():
    with s3_server() as server:
        yield server


@pytest.fixture
def upstream(s3, tmp_path):
    """Publish tables that lie below a folder, as they are there now."""

    def publish(full=tmp_path / "full"):
        s3.put("parsed", full / "core", "core")
        s3.put("build", full / "collections", "collections")

    return SimpleNamespace(publish=publish, full=tmp_path / "full", local=tmp_path / "raw")


def remote(s3, *, mp=None, licence=None, **options):
    options = recipe.FetchMaterialsProject(endpoint=s3.endpoint, parsed="parsed", build="build", **options)
    return MaterialsProjectTables(options, mp or recipe.MaterialsProject(), licence or recipe.License())


class Fetched:
    """What the fetcher does: each file whose identity is another than before; `known` survives in a JSON file."""

    def __init__(self, root):
        self.root, self.known, self.left_out, self.version = root, {}, {}, {}

    def run(self, publisher, options=FAST, **session):
        got = []
        with Session(options, **session) as connected:
            for stage in publisher.stages(connected, self.root):
                self.version |= stage.version
                for file in stage.files:
                    assert file.at_most
                    assert file.part_of == "/".join(file.path.split("/")[:2])
                    if self.known.get(file.path) != file.identity:
                        received = file.get(connected, self.root / file.path)
                        self.known[file.path] = json.loads(json.dumps(file.identity))
                        assert self.known[file.path] == file.identity
                        self.left_out[file.path] = received.left_out
                        got.append(file.path)
        assert not list(self.root.rglob("*.part"))
        return got

    @property
    def lost(self):
        return self.left_out[next(path for path in self.left_out if path.startswith(TRAJECTORIES))]


def same(a, b):
    for item in fields(a):
        np.testing.assert_equal(getattr(a, item.name), getattr(b, item.name), err_msg=f"{a.trajectory_id} {item.name}")


def by_asset(source):
    assets = sorted(source.assets(), key=lambda asset: asset.name)
    return [record for asset in assets for record in source.read(asset)]


def compare(full, local, workspace, options, rules):
    """Compare what builds make of the full tables and of the copy; return how many trajectories are kept and not."""
    ways = [by_asset(opened(root, workspace / root.name, options)) for root in (full, local)]
    kept = rejected = 0
    for whole, copied in zip(*ways, strict=True):
        assert whole.n_frames == copied.n_frames
        assert whole.rejections == copied.rejections
        for one, other in zip(whole.trajectories, copied.trajectories, strict=True):
            (a, why), (b, why_too) = curate([one, other], rules)
            if any(
                text.startswith("arrays not fetched") for text in other.faults.values()
            ):  # which calculation a frame belongs to stood in the geometries
                assert b is None
                why = [replace(r, relaxation_number=None) for r in why]
                why_too = [replace(r, relaxation_number=None) for r in why_too]
            assert why == why_too
            assert (a is None) == (b is None)
            if a is not None:
                same(a, b)
                kept += 1
            frames = sum(r.n_frames or 0 for r in why_too) + (len(b) if b is not None else 0)
            assert frames == copied.n_frames
            rejected += a is None
    return kept, rejected


def lost_rows(local):
    found = pq.read_table(local / "core" / "trajectories", columns=["identifier", "run_type", LEFT_OUT]).to_pylist()
    return {r["identifier"]: r[LEFT_OUT] for r in found if r[LEFT_OUT]}


@pytest.fixture
def mixed(upstream):
    """Publish the sample with rows that no build keeps, in several row groups."""
    extra = [
        row(identifier="mp-146__HSE06", run_type="HSE06"),
        row(identifier="mp-146__HF", run_type="HF", task_type="Static"),
        row(identifier="mp-146__PBE", run_type="PBE"),
        row(identifier="mp-146__none", run_type=None),
        row(identifier="orphan", run_type="SCAN+U"),
        row(identifier=None, run_type="HSE06"),
        row(identifier="aaaaaaft", run_type="HSE06"),
        row(identifier="mp-146__uncounted", run_type="HSE06", num_ionic_steps=None),
        row(identifier="mp-146__without_elements", run_type="HSE06", elements=None),
    ]
    named = [r["identifier"] for r in extra if str(r["identifier"]).startswith("mp-146__")]
    materials = licensed()
    materials[0]["task_ids"] = [*materials[0]["task_ids"], *named]
    write_tables(upstream.full, materials=materials)
    shutil.rmtree(upstream.full / "core" / "trajectories")
    properties = WriterProperties(max_row_group_size=7)
    write_deltalake(
        upstream.full / "core" / "trajectories", table(*ROWS, *extra), writer_properties=properties, mode="overwrite"
    )
    upstream.publish()
    return upstream


@pytest.mark.parametrize("orphans", ["reject", "keep"])
def test_a_build_from_the_copy_is_that_from_the_full_tables(s3, mixed, tmp_path, orphans):
    options = recipe.MaterialsProject(tasks_without_material=orphans)
    fetched = Fetched(mixed.local)
    fetched.run(remote(s3, mp=options))
    lost = lost_rows(mixed.local)
    kept, rejected = compare(mixed.full, mixed.local, tmp_path / "work", options, recipe.Rules())
    assert (kept, rejected) == ((13, 28) if orphans == "reject" else (16, 25))
    assert lost["mp-146__HSE06"] == "run type HSE06"
    assert lost["mp-146__HF"] == "run type HF"
    assert lost["mp-12957__GGA_Static"] == "licence BY-NC"
    assert not {"mp-146__PBE", "mp-146__none", "mp-146__uncounted", "mp-146__GGA_Static"} & lost.keys()
    orphan_count = fetched.lost.pop("no material", 0)
    assert (orphan_count > 0) == (orphans == "reject")
    assert fetched.lost == {"licence BY-NC": 6, "run type HSE06": 4, "run type HF": 1, "run type SCAN+U": 1}


def test_without_the_licence_rule_only_run_types_filter(s3, mixed, tmp_path):
    off = recipe.License(enabled=False)
    fetched = Fetched(mixed.local)
    fetched.run(remote(s3, licence=off))
    assert fetched.lost == {"run type HSE06": 4, "run type HF": 1, "run type SCAN+U": 1}
    rules = recipe.Rules(license=off)
    compare(mixed.full, mixed.local, tmp_path / "work", recipe.MaterialsProject(), rules)


def test_all_requests_are_anonymous(s3, mixed, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    Fetched(mixed.local).run(remote(s3))
    assert len(s3.requests) > 20
    for request in s3.requests:
        assert not {"authorization", "x_amz_security_token"} & request.headers.keys()
        assert "X-Amz-Signature" not in request.query
        assert request.headers["user_agent"].startswith("trajmill/")


def test_the_copy_is_at_the_same_place_with_the_needed_columns_in_order(s3, mixed):
    fetched = Fetched(mixed.local)
    fetched.run(remote(s3))
    assert fetched.version == dict.fromkeys(["collections/materials", "core/tasks", "core/trajectories"], "0")
    for path in fetched.known:
        full, copy = pq.ParquetFile(mixed.full / path), pq.ParquetFile(mixed.local / path)
        assert [copy.metadata.row_group(i).num_rows for i in range(copy.num_row_groups)] == [
            full.metadata.row_group(i).num_rows for i in range(full.num_row_groups)
        ]
        assert {copy.metadata.row_group(0).column(i).compression for i in range(copy.metadata.num_columns)} == {"ZSTD"}
        if path.startswith(TRAJECTORIES):
            assert set(copy.schema_arrow.names) == {
                *HEAVY, LEFT_OUT, *("identifier", "run_type", "task_type", "elements"),
                *("num_ionic_steps", "num_electronic_steps"),
            }  # fmt: skip
            steps = copy.schema_arrow.field("electronic_steps").type.value_type.value_type
            assert [f.name for f in steps] == ["e_fr_energy", "e_0_energy"]
            ids = [copy.read(["identifier"]), full.read(["identifier"])]
            assert ids[0].column(0).to_pylist() == ids[1].column(0).to_pylist()


def chunks(path):
    """Yield row group, column and byte range of each column chunk of a Parquet file."""
    metadata = pq.read_metadata(path)
    for i in range(metadata.num_row_groups):
        for j in range(metadata.num_columns):
            column = metadata.row_group(i).column(j)
            start = column.dictionary_page_offset or column.data_page_offset
            yield i, column.path_in_schema.split(".")[0], start, start + column.total_compressed_size


def test_only_what_is_needed_is_transferred(s3, upstream):
    rng = np.random.default_rng(0)
    wanted, unwanted = row(), row(identifier="mp-146__HSE06", run_type="HSE06")
    rows = table(*[unwanted] * 6, *[wanted] * 6, *[unwanted, wanted] * 3)
    rows = rows.append_column("ballast", pa.array([rng.random(20_000) for _ in range(len(rows))]))
    write_tables(upstream.full, trajectories=rows)
    shutil.rmtree(upstream.full / "core" / "trajectories")
    properties = WriterProperties(max_row_group_size=6)
    write_deltalake(upstream.full / "core" / "trajectories", rows, writer_properties=properties)
    upstream.publish()
    arrived = []
    fetched = Fetched(upstream.local)
    fetched.run(remote(s3), advance=arrived.append)
    [path] = [path for path in fetched.known if path.startswith(TRAJECTORIES)]
    full = upstream.full / path
    asked = [(r.start, r.stop) for r in s3.requests if r.path == f"/parsed/{path}" and r.method == "GET"]
    touched = {
        (group, column)
        for group, column, start, stop in chunks(full)
        if stop < full.stat().st_size - 65536  # what is read with the footer anyway
        for a, b in asked
        if a < stop and start < b
    }
    assert {column for _, column in touched}.isdisjoint({"ballast", "energy", "e_wo_entrp", "forces_convergence"})
    assert {group for group, column in touched if column in HEAVY} == {1, 2}
    assert {group for group, column in touched if column == "identifier"} >= {0, 1}
    transferred = sum(b - a for a, b in asked)
    assert transferred < full.stat().st_size / 5
    assert sum(arrived) == sum(r.stop - r.start for r in s3.requests if r.method == "GET" and r.stop)


def test_large_row_groups_are_written_in_parts(s3, upstream, monkeypatch):
    monkeypatch.setattr(parquet_copy, "ROW_GROUP", 30_000)
    monkeypatch.setattr(parquet_copy, "BATCH", 4)
    monkeypatch.setattr(parquet_copy, "BUFFER", 4096)
    write_tables(upstream.full)
    upstream.publish()
    fetched = Fetched(upstream.local)
    fetched.run(remote(s3, licence=recipe.License(enabled=False)))
    copy = pq.ParquetFile(next((upstream.local / "core" / "trajectories").glob("*.parquet")))
    assert copy.num_row_groups > 3
    names = ["identifier", "cart_coords", "forces", "e_fr_energy", "stress", "lattice", "elements"]
    assert copy.read(names).to_pydict() == SAMPLE.select(names).to_pydict()


def test_the_copy_is_of_the_version_that_was_listed(s3, upstream):
    write_tables(upstream.full, trajectories=table(row()))
    upstream.publish()
    publisher = remote(s3)
    with Session(FAST) as session:
        stages = publisher.stages(session, upstream.local)
        first = next(stages)
        write_tables(upstream.full, trajectories=table(row("aaafwugc")), materials=licensed(mp_8062="BY-NC"))
        upstream.publish()
        for file in first.files:
            file.get(session, upstream.local / file.path)
        [file] = next(stages).files
        assert file.get(session, upstream.local / file.path).left_out == {}
    copied = pq.read_table(upstream.local / file.path)
    assert copied["identifier"].to_pylist() == [SIC]
    fetched = Fetched(upstream.local)
    fetched.run(publisher)
    assert fetched.version == dict.fromkeys(["collections/materials", "core/tasks", "core/trajectories"], "1")
    assert fetched.lost == {"licence BY-NC": 1}


def test_a_changed_licence_fetches_the_files_it_concerns(s3, upstream):
    write_tables(upstream.full, trajectories=table(row(), row("mp-146__GGA_Static")))
    others = table(row("mp-146__GGA_Structure_Optimization"), row("mp-12957__GGA_Static"))
    write_deltalake(upstream.full / "core" / "trajectories", others, mode="append")
    upstream.publish()
    fetched = Fetched(upstream.local)
    assert len(fetched.run(remote(s3))) == 4
    assert fetched.run(remote(s3)) == []

    def update(**licences):
        rows = pa.Table.from_pylist(licensed(**licences), MATERIALS)
        folder = upstream.full / "collections" / "materials"
        write_deltalake(folder, rows, partition_by=["version"], mode="overwrite")
        upstream.publish()
        return [path for path in fetched.run(remote(s3)) if not path.startswith("collections/")]

    def holds(path, identifier):
        return identifier in pq.read_table(upstream.local / path)["identifier"].to_pylist()

    [path] = update(mp_8062="BY-NC")
    assert holds(path, SIC)
    assert fetched.left_out[path] == {"licence BY-NC": 1}
    [path] = update(mp_8062="BY-NC", mp_12957="BY-C")
    assert holds(path, "mp-12957__GGA_Static")
    assert fetched.left_out[path] == {}
    assert update(mp_8062=None, mp_12957="BY-C", mp_27230="BY-NC") == []  # not wanted still, and a task not here
    [path] = update(mp_12957="BY-C")
    assert holds(path, SIC)
    assert pq.read_table(upstream.local / path)["forces"].null_count == 0


def test_other_run_types_fetch_the_files_that_have_them(s3, upstream):
    write_tables(upstream.full, trajectories=table(row(), row("mp-146__GGA_Static")))
    hybrid = table(row("mp-146__GGA_Structure_Optimization", run_type="HSE06"))
    write_deltalake(upstream.full / "core" / "trajectories", hybrid, mode="append")
    upstream.publish()
    fetched = Fetched(upstream.local)
    fetched.run(remote(s3))
    [path] = fetched.run(remote(s3, run_types=("GGA", "PBEsol", "HSE06")))
    assert fetched.left_out[path] == {}


def test_a_local_file_that_is_another_one_is_fetched_again(s3, upstream):
    write_tables(upstream.full)
    upstream.publish()
    fetched = Fetched(upstream.local)
    [*_, path] = fetched.run(remote(s3))
    (upstream.local / path).write_bytes(b"PAR1 no more")
    assert fetched.run(remote(s3)) == [path]


def test_of_several_materials_one_with_an_accepted_licence_is_enough(s3, upstream):
    twice = [
        MATERIAL_ROWS[4] | {"material_id": f"mp-{i}", "builder_meta": {"license": name}}
        for i, name in enumerate(["BY-NC", "BY-C", None])
    ]
    write_tables(upstream.full, trajectories=table(row()), materials=twice)
    upstream.publish()
    fetched = Fetched(upstream.local)
    fetched.run(remote(s3))
    assert fetched.lost == {}
    fetched.run(remote(s3, licence=recipe.License(accept=("CC0",))))
    assert sum(fetched.lost.values()) == 1


def test_only_the_newest_database_version_of_the_materials_is_copied(s3, upstream):
    old = [m | {"version": "2024.12.1", "builder_meta": {"license": "BY-NC"}} for m in MATERIAL_ROWS]
    write_tables(upstream.full, materials=[*old, *MATERIAL_ROWS])
    upstream.publish()
    fetched = Fetched(upstream.local)
    fetched.run(remote(s3))
    [path] = [path for path in fetched.known if path.startswith("collections/")]
    assert "/version=2025.9.25/" in path


def test_partitioned_trajectories(s3, upstream, tmp_path):
    write_tables(upstream.full)
    shutil.rmtree(upstream.full / "core" / "trajectories")
    rows = table(*ROWS, row(identifier="x", run_type="SCAN+U"))
    write_deltalake(upstream.full / "core" / "trajectories", rows, partition_by=["run_type", "task_type"])
    upstream.publish()
    fetched = Fetched(upstream.local)
    fetched.run(remote(s3))
    assert {reason for counts in fetched.left_out.values() for reason in counts} >= {"run type SCAN+U", "licence BY-NC"}
    assert compare(upstream.full, upstream.local, tmp_path / "work", recipe.MaterialsProject(), recipe.Rules())[0] == 13


SCAN = json.dumps({"METAGGA": "Scan", "ISIF": 3, "IBRION": 2, "NSW": 99})


def test_a_row_that_turns_out_wanted_after_all_is_rejected_and_says_why(s3, upstream, tmp_path):
    write_tables(
        upstream.full, trajectories=table(row(run_type="HSE06")), tasks=[sic_task(incar=SCAN, run_type="HSE06")]
    )
    upstream.publish()
    Fetched(upstream.local).run(remote(s3))
    [record] = records(opened(upstream.local, tmp_path / "work"))
    [trajectory] = record.trajectories
    assert (record.n_frames, trajectory.functional) == (4, "scan")
    [(kept, rejections)] = curate([trajectory], recipe.Rules())
    assert kept is None
    assert [(r.rejected_by, r.detail, r.n_frames) for r in rejections] == [
        ("targets", "arrays not fetched (run type HSE06)", 1)
    ] * 4


def test_a_licence_accepted_since_the_fetch_is_rejected_and_says_why(s3, upstream, tmp_path):
    write_tables(upstream.full, trajectories=table(row()), materials=licensed(mp_8062="BY-NC"))
    upstream.publish()
    Fetched(upstream.local).run(remote(s3))
    [record] = records(opened(upstream.local, tmp_path / "work"))
    rules = recipe.Rules(license=recipe.License(accept=("BY-C", "BY-NC")))
    [(_, rejections)] = curate(record.trajectories[:1], rules)
    assert {r.detail for r in rejections} == {"arrays not fetched (licence BY-NC)"}
    assert sum(r.n_frames for r in rejections) == record.n_frames == 4


def test_a_dry_run_lists_everything_at_most(s3, mixed):
    with Session(FAST) as session:
        first, second = remote(s3).stages(session, mixed.local)
    [trajectories] = second.files
    assert trajectories.n_bytes == (mixed.full / trajectories.path).stat().st_size
    assert trajectories.identity["rows"] is None
    assert len(first.files) == 2
    assert not mixed.local.exists()
    assert trajectories.uri == f"{s3.endpoint}/parsed/{trajectories.path}"
    assert trajectories.modified.endswith("+00:00")


# what can go wrong


def test_failures_that_pass(s3, mixed):
    seen = set()

    def fault(method, path):
        return None if (method, path) in seen else seen.add((method, path)) or 503

    s3.fault = fault
    fetched = Fetched(mixed.local)
    assert len(fetched.run(remote(s3))) == 3
    assert {r.status for r in s3.requests} >= {200, 206, 503}


@pytest.mark.parametrize("where", ["_delta_log", "core/trajectories/part", "core/tasks/part"])
@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (503, RemoteUnavailableError, "503 Service Unavailable"),
        (403, RemoteRefusedError, "the server will not show it"),
        (404, (RemoteNotFoundError, RemoteContentError), "see fetch.mp in the recipe|File not found"),
    ],
)
def test_failures_that_stay(s3, mixed, where, status, error, words):
    s3.fault = lambda method, path: status if where in path else None
    fetched = Fetched(mixed.local)
    with pytest.raises(error, match=words) as raised:
        fetched.run(remote(s3))
    assert "\n" not in str(raised.value)
    assert s3.endpoint in str(raised.value)
    assert not any(where in path.as_posix() for path in mixed.local.rglob("*"))


def test_missing_places(s3, mixed):
    with Session(FAST) as session:
        shutil.rmtree(mixed.full / "core" / "tasks")
        s3.put("half", mixed.full / "core", "core")
        options = recipe.FetchMaterialsProject(endpoint=s3.endpoint, parsed="half", build="build")
        publisher = MaterialsProjectTables(options, recipe.MaterialsProject(), recipe.License())
        with pytest.raises(RemoteNotFoundError, match=r"half/core/tasks: no Delta table here; see fetch.mp"):
            next(publisher.stages(session, mixed.local))
        publisher = replace(publisher, options=options.model_copy(update={"parsed": "nowhere"}))
        with pytest.raises(RemoteNotFoundError, match="nowhere"):
            next(publisher.stages(session, mixed.local))


def test_no_server(s3, mixed):
    publisher = remote(s3)
    options = publisher.options.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    with Session(FAST) as session, pytest.raises(RemoteUnavailableError, match="run again to go on"):
        next(replace(publisher, options=options).stages(session, mixed.local))


def noise(_method, path, body):
    return bytes(len(body)) if "core/trajectories/part" in path else body


def cut(method, path, body):
    return body[: len(body) // 2] if method == "GET" and "core/trajectories/part" in path else body


@pytest.mark.parametrize(
    ("damage", "words"), [(noise, "damaged, or no Parquet file"), (cut, "arrived|[Ee]rror|[Rr]ange")]
)
def test_damaged_content(s3, mixed, damage, words):
    s3.damage = damage
    before = []
    with pytest.raises((RemoteContentError, RemoteUnavailableError), match=words):
        Fetched(mixed.local).run(remote(s3), note=before.append)
    assert len(before) == FAST.retries
    assert not list((mixed.local / TRAJECTORIES).glob("*"))
    s3.damage = lambda _method, _path, body: body
    assert len(Fetched(mixed.local).run(remote(s3))) == 3


def test_damaged_pages(s3, upstream):
    write_tables(upstream.full)
    [file] = (upstream.full / "core" / "trajectories").glob("*.parquet")
    data = bytearray(file.read_bytes())
    start = next(start for _, column, start, _ in chunks(file) if column == "forces")
    data[start : start + 400] = bytes(400)
    file.write_bytes(data)
    upstream.publish()
    with pytest.raises(RemoteContentError, match="damaged"):
        Fetched(upstream.local).run(remote(s3))


def test_a_file_of_another_size_than_the_log_says(s3, upstream):
    write_tables(upstream.full)
    [file] = (upstream.full / "core" / "tasks").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    upstream.publish()
    with pytest.raises(RemoteContentError, match=r"has \d+ bytes, \d+ by the log of its table"):
        Fetched(upstream.local).run(remote(s3))


def test_a_damaged_log(s3, upstream):
    write_tables(upstream.full)
    [log] = (upstream.full / "core" / "tasks" / "_delta_log").glob("*.json")
    log.write_text("<html>")
    upstream.publish()
    with pytest.raises(RemoteContentError, match="core/tasks: cannot be read as a Delta table"):
        Fetched(upstream.local).run(remote(s3))


DELETED = struct.pack("<IqI IIHHIH", 1681511377, 1, 0, 12346, 1, 0, 0, 16, 0)
"""A RoaringBitmapArray with row 0: magic, number of bitmaps, key; cookie, containers, key, size, offset, value."""


def z85(data):
    data += bytes(-len(data) % 4)
    symbols = f"{string.digits}{string.ascii_lowercase}{string.ascii_uppercase}.-:+=^!/*?&<>()[]{{}}@%$#"
    numbers = [int.from_bytes(data[i : i + 4]) for i in range(0, len(data), 4)]
    return "".join(symbols[n // 85**k % 85] for n in numbers for k in (4, 3, 2, 1, 0))


def test_deleted_rows_of_a_vector_are_an_error(s3, upstream):
    write_tables(upstream.full)
    [log] = (upstream.full / "core" / "tasks" / "_delta_log").glob("*.json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    for line in lines:
        if "protocol" in line:
            line["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7} | features
        if "add" in line:
            vector = {"storageType": "i", "pathOrInlineDv": z85(DELETED), "sizeInBytes": len(DELETED), "cardinality": 1}
            line["add"]["deletionVector"] = vector
    log.write_text("\n".join(map(json.dumps, lines)))
    upstream.publish()
    with pytest.raises(RemoteContentError, match="deletion vectors"):
        Fetched(upstream.local).run(remote(s3))


@pytest.mark.parametrize("column", ["identifier", "forces", "e_fr_energy"])
def test_a_missing_column_is_named(s3, upstream, column):
    write_tables(upstream.full, trajectories=SAMPLE.drop_columns([column]))
    upstream.publish()
    with pytest.raises(RemoteContentError, match=rf"has no column {column}; has the table changed its form\?"):
        Fetched(upstream.local).run(remote(s3))


def test_missing_columns_of_the_other_tables_are_named(s3, upstream):
    write_tables(upstream.full)
    place = upstream.full / "core" / "tasks"
    shutil.rmtree(place)  # deltalake 1.6.0 cannot take a column out of a table
    write_deltalake(place, pa.Table.from_pylist([sic_task()], TASKS).drop_columns(["input"]))
    upstream.publish()
    with pytest.raises(RemoteContentError, match=r"has no column input\.incar, input\.parameters;"):
        Fetched(upstream.local).run(remote(s3))


@pytest.mark.parametrize("column", ["stress", "electronic_steps", "num_electronic_steps", "num_ionic_steps"])
def test_a_missing_optional_column_is_no_error(s3, upstream, tmp_path, column):
    write_tables(upstream.full, trajectories=SAMPLE.drop_columns([column]))
    upstream.publish()
    Fetched(upstream.local).run(remote(s3))
    lost = lost_rows(upstream.local)
    assert bool(lost) == (column != "num_ionic_steps")  # nobody would know how many frames such a row had
    compare(upstream.full, upstream.local, tmp_path / "work", recipe.MaterialsProject(), recipe.Rules())


def test_a_stop_is_heard_between_requests(s3, mixed):
    arrived = []
    with Session(FAST, advance=arrived.append) as session:
        stages = remote(s3).stages(session, mixed.local)
        for file in next(stages).files:
            file.get(session, mixed.local / file.path)
        [file] = next(stages).files
        before = sum(arrived)

        def stop(_method, path, body):
            if "trajectories" in path and len(body) < 1000:
                session.stop.set()
            return body

        s3.damage = stop
        with pytest.raises(Stopped):
            file.get(session, mixed.local / file.path)
        assert sum(arrived) == before
    assert not list((mixed.local / TRAJECTORIES).glob("*"))


def test_a_full_disk(s3, mixed, tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        for place in ("core/tasks", "core/trajectories", "collections/materials/version=2025.9.25"):
            (disk / "mp" / place).mkdir(parents=True)
        fill(disk)
        with pytest.raises(DiskError, match="the disk is full; make room and run again"):
            Fetched(disk / "mp").run(remote(s3))
        assert not [path for path in (disk / "mp").rglob("*") if path.is_file()]


def test_the_fetcher_settles_and_a_build_reads_what_the_manifest_names(s3, mixed, tmp_path):
    made = recipe.Recipe(fetch=FAST.model_copy(update={"mp": remote(s3).options}))
    assert fetch("mp", mixed.local, made, dry_run=True).at_most
    summary = fetch("mp", mixed.local, made)
    assert (len(summary.new), summary.failed) == (3, {})
    manifest = RawManifest.load(mixed.local)
    assert manifest.version["core/trajectories"] == "0"
    [entry] = [file for path, file in manifest.files.items() if path.startswith(TRAJECTORIES)]
    assert entry.left_out["run type HSE06"] == 4
    write_tables(mixed.full, trajectories=table(row()))
    mixed.publish()
    again = fetch("mp", mixed.local, made)
    assert (len(again.new), len(again.superseded)) == (3, 3)
    assert by_id(records(opened(mixed.local, tmp_path / "work"))).keys() == {"mp-2392466-pbe"}
    assert len(fetch("mp", mixed.local, made).unchanged) == 3


def test_what_a_killed_process_left_is_replaced(s3, mixed):
    [path] = (mixed.full / TRAJECTORIES).glob("*.parquet")
    left = mixed.local / TRAJECTORIES / f"{path.name}.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 10_000_000)
    Fetched(mixed.local).run(remote(s3))
    assert len(by_id(records(opened(mixed.local, mixed.local.parent / "work")))) > 30
    assert isinstance(opened(mixed.local, mixed.local.parent / "work"), MaterialsProjectDelta)


def test_orphans_may_be_wanted(s3, upstream):
    write_tables(upstream.full, trajectories=table(row(identifier="aaazzzzz")))
    upstream.publish()
    for orphans, lost in (("reject", {"no material": 1}), ("keep", {})):
        fetched = Fetched(Path(f"{upstream.local}-{orphans}"))
        fetched.run(remote(s3, mp=recipe.MaterialsProject(tasks_without_material=orphans)))
        assert fetched.lost == lost


@pytest.fixture
def newer(s3, mixed):
    """Fetch, then publish a new version of the materials, which is not here yet."""
    fetched = Fetched(mixed.local)
    fetched.run(remote(s3))
    publish_newer_materials(mixed)
    return fetched


def publish_newer_materials(upstream):
    """Publish the same materials as a new version."""
    folder = upstream.full / "collections" / "materials"
    rows = [m | {"version": "2025.12.1"} for m in DeltaTable(folder).to_pyarrow_table().to_pylist()]
    write_deltalake(folder, pa.Table.from_pylist(rows, MATERIALS), partition_by=["version"], mode="append")
    upstream.publish()


def listed(s3, fetched):
    """List without fetching; return the file of materials and that of trajectories."""
    with Session(FAST) as session:
        first, second = remote(s3).stages(session, fetched.root)
    return first.files[0], second.files[0]


def test_while_what_is_wanted_is_not_known_what_local_files_have_will_do(s3, newer):
    materials, trajectories = listed(s3, newer)
    assert materials.path not in newer.known
    assert trajectories.wanted is None
    assert newer.lost
    assert trajectories.identity == newer.known[trajectories.path]
    assert newer.run(remote(s3)) == [materials.path]


def test_a_dry_run_does_not_count_what_will_not_be_fetched(s3, mixed):
    made = recipe.Recipe(fetch=FAST.model_copy(update={"mp": remote(s3).options}))
    fetch("mp", mixed.local, made)
    publish_newer_materials(mixed)
    said = fetch("mp", mixed.local, made, dry_run=True)
    done = fetch("mp", mixed.local, made)
    assert [path.split("/")[2] for path in said.new] == ["version=2025.12.1"]
    assert (said.new, said.changed, said.n_bytes) == (done.new, done.changed, done.n_bytes)


@pytest.mark.parametrize("content", ["of somebody else", "damaged"])
def test_a_local_file_that_does_not_say_what_it_has_is_another_one(s3, newer, content):
    _, trajectories = listed(s3, newer)
    if content == "damaged":
        trajectories.local.path.write_bytes(b"PAR1 no more")
    else:
        pq.write_table(pa.table({"x": [1]}), trajectories.local.path)
    assert trajectories.identity["rows"] is None


def test_no_address_that_is_kept_holds_a_password(s3, mixed):
    publisher = remote(s3)
    with Session(FAST) as session:
        first, second = publisher.stages(session, mixed.local)
        bucket = Bucket("parsed", publisher.options.model_copy(update={"endpoint": "http://me:S3CRET@h"}), session)
        for file in (*first.files, *second.files):
            assert replace(file, bucket=bucket).uri == f"http://h/parsed/{quote(file.path)}"
