"""Materials Project, JSON Lines: real documents, made-up faults."""

import contextlib
import copy
import functools
import gzip
import json
import operator
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mp_samples import DATA, KEEP, REAL, by_id, documents, opened, records
from trajmill.errors import SourceError
from trajmill.recipe import MaterialsProject
from trajmill.sources.base import RELAXATION, Source
from trajmill.sources.materials_project import open_materials_project
from trajmill.units import KBAR_PER_EV_PER_A3

TASK_FILES = sorted((REAL / "tasks").glob("*.jsonl.gz"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return records(opened(REAL, tmp_path_factory.mktemp("work")))


@pytest.fixture
def build(tmp_path):
    """Write lines (documents, or bytes as they are) as a source and open it."""

    def write(*lines, materials=(), options=None, name="tasks/a.jsonl.gz"):
        for file, content in ((name, lines), ("materials/m.jsonl.gz", materials)):
            path = tmp_path / "mp" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in content]
            path.write_bytes(gzip.compress(b"\n".join(raw)))
        return opened(tmp_path / "mp", tmp_path / "work", options)

    return write


TEXTS = [json.dumps(document) for document in documents(REAL / "tasks" / "emmet_SiC_elastic.jsonl.gz")]


def task(number=0):
    return json.loads(TEXTS[number])


def doubled():
    """Return a small real double relaxation: 7 + 3 steps, GGA."""
    return task()


def one(source):
    """Return the only trajectory of the only record."""
    [record] = records(source)
    [trajectory] = record.trajectories
    assert record.n_frames == len(trajectory)
    return trajectory


def test_every_step_of_every_real_document_is_read(real):
    tasks = list(documents(*TASK_FILES))
    raw = sum(len(c["output"]["ionic_steps"]) for t in tasks for c in t["calcs_reversed"])
    assert raw == sum(record.n_frames for record in real) == 365
    assert all(record.n_frames == sum(map(len, record.trajectories)) for record in real)
    assert not any(record.rejections for record in real)
    assert len(by_id(real)) == len(tasks) + 2  # mp-1120260 and mp-688194 hold two kinds of calculation each


@pytest.mark.parametrize("path", TASK_FILES, ids=lambda p: p.name.partition(".")[0])
def test_stages_are_chronological_and_complete(path, real):
    """The last cell of a calculation is the first of the next; the end is the end of `calcs_reversed[0]`."""
    found = {t.task_id: t for record in real for t in record.trajectories if t.task_type == RELAXATION}
    for document in documents(path):
        t, end = found.get(str(document["task_id"])), document["calcs_reversed"][0]["output"]["ionic_steps"][-1]
        if t is None or "structure" not in end:
            continue
        assert t.energy[-1] == end["e_fr_energy"]
        assert t.lattice[-1].tolist() == end["structure"]["lattice"]["matrix"]
        assert np.all(np.diff(t.relaxation_number) >= 0)
        assert np.all(np.diff(t.relaxation_step) == 1)
        for border in np.flatnonzero(np.diff(t.relaxation_number)):
            np.testing.assert_allclose(t.lattice[border], t.lattice[border + 1], atol=1e-3)


def test_frames_hold_what_the_document_says(real):
    t, document = by_id(real)["mp-2377580-pbe"], doubled()
    steps = [s for c in document["calcs_reversed"][::-1] for s in c["output"]["ionic_steps"]]
    xyz = [[site["xyz"] for site in s["structure"]["sites"]] for s in steps]
    np.testing.assert_allclose(t.positions, xyz, atol=1e-6)
    np.testing.assert_array_equal(t.forces, [s["forces"] for s in steps])
    np.testing.assert_allclose(-t.stress * KBAR_PER_EV_PER_A3, [s["stress"] for s in steps], atol=1e-6)
    assert t.symbols == [site["species"][0]["element"] for site in steps[0]["structure"]["sites"]]
    assert t.electronic_steps.tolist() == [len(s["electronic_steps"]) for s in steps]
    assert t.relaxation_number.tolist() == [0] * 7 + [1] * 3
    assert (t.task_id, t.immutable_id, t.license, t.run_type) == ("mp-ffhdk", "mp-8062", "BY-C", "GGA")
    assert (t.potentials, t.hubbard_u, set(t.encut), set(t.ispin)) == (("Si", "C"), {}, {700.0}, {2})
    assert (t.last_modified, t.relaxation_converged, t.material_origin) == ("2023-03-11T00:05:53", True, False)
    assert by_id(real)["mp-2508331-pbe"].material_origin


def test_a_site_without_fractional_coordinates_is_read_by_its_cartesian_ones(build):
    document = doubled()
    expected = one(build(document))
    for site in document["calcs_reversed"][0]["output"]["ionic_steps"][-1]["structure"]["sites"]:
        del site["abc"]
    t = one(build(document))
    assert t.faults == {}
    np.testing.assert_array_equal(t.positions[:-1], expected.positions[:-1])
    np.testing.assert_allclose(t.positions[-1], expected.positions[-1], atol=1e-6)


def test_the_step_s_e_0_energy_is_never_an_energy(real):
    """VASP 5 writes the electronic entropy there, about 0; energy(sigma->0) comes from the electronic steps."""
    t = by_id(real)["mp-1201400-pbe"]
    assert t.energy.max() < -1380
    metal = by_id(real)["mp-146__GGA_Structure_Optimization-pbe"]
    np.testing.assert_allclose(metal.energy_sigma0[-1], -9.07927997, atol=1e-7)
    np.testing.assert_allclose(metal.energy[-1], -9.07918091, atol=1e-7)


def test_a_document_without_composition_keeps_its_frames(real):
    t = by_id(real)["mp-1201400-pbe"]
    assert (len(t), t.n_atoms, t.relaxation_number.tolist()) == (20, 232, [0] * 17 + [1] * 3)


def test_functional_is_decided_per_calculation(real):
    """mp-1120260: a GGA static, then two SCAN relaxations of which one is stored as GGA."""
    found = by_id(real)
    scan, static = found["mp-1120260-scan"], found["mp-1120260-pbe-static-0"]
    assert (scan.functional, len(scan), static.task_type) == ("scan", 6, "Static")
    assert scan.relaxation_number.tolist() == [1] * 3 + [2] * 3
    assert scan.relaxation_step.tolist() == [1, 2, 3, 4, 5, 6]
    assert scan.notes == ("stored as GGA, recomputed SCAN Structure Optimization",)


def test_gga_and_gga_u_are_told_apart(real):
    run_types = {i: t.run_type for i, t in by_id(real).items() if i.startswith(("mp-18937", "mp-146__GGA_S"))}
    assert run_types["mp-18937__GGA+U_Structure_Optimization-pbe"] == "GGA+U"
    assert run_types["mp-146__GGA_Structure_Optimization-pbe"] == "GGA"


def test_of_two_run_types_with_one_functional_the_last_is_the_trajectory(build):
    document = doubled()
    document["calcs_reversed"][0]["input"]["incar"] |= {"LDAU": True, "LDAUU": [4.0, 0.0]}
    found = by_id(records(build(document, options=KEEP)))
    first, last = found["mp-2377580-GGA"], found["mp-2377580-pbe"]
    assert (len(first), first.functional) == (7, None)
    assert first.findings == {"unsupported_functional": "relaxation with GGA before the one with GGA+U"}
    assert (len(last), last.run_type, last.hubbard_u, last.findings) == (3, "GGA+U", {"Si": 4.0}, {})


def test_nelm_is_that_of_the_calculation(build):
    document = doubled()
    first, last = document["calcs_reversed"][1]["input"], document["calcs_reversed"][0]["input"]
    first["parameters"]["NELM"], first["incar"]["NELM"], last["incar"]["NELM"] = 200, 60, 40
    last["parameters"].pop("NELM", None)
    assert one(build(document)).nelm.tolist() == [200] * 7 + [40] * 3


def test_deprecation_and_licence_come_from_the_material(real):
    found = by_id(real)
    deprecated = found["mp-18937__GGA+U_Structure_Optimization_2-pbe"]
    assert deprecated.deprecated == "in deprecated_tasks of mp-18937"
    assert found["mp-12957__PBEsol_Structure_Optimization-pbesol"].license == "BY-NC"
    assert found["mp-149-pbe"].findings == {"license": "no materials document names this task"}
    assert found["mp-149-pbe"].immutable_id is None


def test_integer_and_letter_ids_join(build):
    material = {"material_id": "mp-aaaaaaft", "task_ids": ["mp-2377580"], "builder_meta": {"license": "BY-C"}}
    t = one(build(doubled(), materials=[material]))
    assert (t.immutable_id, t.license, t.task_id) == ("mp-149", "BY-C", "mp-ffhdk")


def test_orphans_are_kept_on_request(build):
    t = one(build(doubled(), options=KEEP))
    assert (t.immutable_id, t.license, t.findings) == ("mp-2377580", None, {})


@pytest.mark.parametrize(
    ("change", "licence", "deprecated", "finding"),
    [
        ({}, "BY-C", None, None),
        ({"builder_meta": None}, None, None, "the material has no licence"),
        ({"builder_meta": {"license": None}}, None, None, "the material has no licence"),
        ({"builder_meta": 5}, None, None, "the material has no licence"),
        ({"deprecated_tasks": ["aaafnxhx", "mp-2377580"]}, "BY-C", "in deprecated_tasks of mp-1", None),
        ({"deprecated": True}, "BY-C", "material mp-1 is deprecated", None),
        ({"material_id": None}, None, None, "no materials document names this task"),
        ({"task_ids": None, "calc_types": {"mp-ffhdk": "GGA Structure Optimization"}}, "BY-C", None, None),
        ({"task_ids": None}, None, None, "no materials document names this task"),
    ],
)
def test_verdicts(build, change, licence, deprecated, finding):
    material = {"material_id": "mp-1", "task_ids": ["mp-ffhdk"], "builder_meta": {"license": "BY-C"}} | change
    t = one(build(doubled(), materials=[material, b"{damaged"]))
    assert (t.license, t.deprecated, t.findings.get("license")) == (licence, deprecated, finding)


def test_of_several_materials_the_one_in_force_decides(build):
    def material(number, **more):
        return {"material_id": f"mp-{number}", "task_ids": ["mp-ffhdk"], "builder_meta": {"license": "BY-C"}} | more

    old, new = ({"last_updated": {"$date": f"{year}-01-01"}} for year in (2020, 2024))
    assert (
        one(build(doubled(), materials=[material(1, **new, deprecated=True), material(2, **old)])).immutable_id
        == "mp-2"
    )
    assert one(build(doubled(), materials=[material(1, **new), material(2, **old)])).immutable_id == "mp-1"


def test_wrong_type_in_the_material_is_noted(build):
    t = one(build(doubled(), materials=[{"material_id": "mp-1", "calc_types": {"mp-ffhdk": "SCAN Static"}}]))
    assert t.notes == ("stored as SCAN Static in the material, recomputed GGA Structure Optimization",)


def test_the_material_s_type_is_that_of_the_last_calculation(build):
    document = doubled()
    document["calcs_reversed"][1]["input"]["incar"]["NSW"] = 0
    material = {"material_id": "mp-1", "calc_types": {"mp-ffhdk": "GGA Structure Optimization"}}
    found = by_id(records(build(document, materials=[material])))
    assert [(t.task_type, t.notes) for t in found.values()] == [("Static", ()), (RELAXATION, ())]


def test_without_inputs_the_stored_types_decide(build):
    document = doubled()
    for calculation in document["calcs_reversed"]:
        calculation["input"] = None
        del calculation["run_type"], calculation["task_type"]
    document |= {"run_type": None, "calc_type": None, "task_type": "GGA+U Structure Optimization"}
    t = one(build(document))
    assert (t.trajectory_id, t.run_type, set(t.nelm), t.hubbard_u) == ("mp-2377580-pbe", "GGA+U", {-1}, None)
    material = {"material_id": "mp-1", "calc_types": {"mp-ffhdk": "PBEsol Structure Optimization"}}
    assert one(build(document, materials=[material])).run_type == "PBEsol"


def test_generations_of_one_document_agree(tmp_path, real):
    """The monty form and the plain form with `$date` of the same documents give the same trajectories."""
    found = by_id(real)
    for plain in records(opened(DATA / "plain", tmp_path, KEEP)):
        for t in plain.trajectories:
            other = found[t.trajectory_id]
            np.testing.assert_array_equal(t.positions, other.positions)
            assert (t.run_type, t.last_modified, t.hubbard_u) == (other.run_type, other.last_modified, other.hubbard_u)


NULLABLE = [
    "input",
    "input.incar",
    "input.parameters",
    "input.kpoints",
    "input.potcar_spec",
    "input.potcar",
    "input.hubbards",
    "run_type",
    "task_type",
    "completed_at",
    "output.structure",
    "output.outcar",
    "output.outcar.magnetization",
]


@pytest.mark.parametrize("value", [None, "missing", 5, [None]], ids=str)
@pytest.mark.parametrize("field", NULLABLE)
def test_any_field_of_a_calculation_may_be_null_missing_or_odd(build, field, value):
    document = doubled()
    *parents, name = field.split(".")
    for calculation in document["calcs_reversed"]:
        for parent in parents:
            calculation = calculation[parent]
        if value == "missing":
            calculation.pop(name, None)
        else:
            calculation[name] = value
    document |= {"run_type": "GGA", "task_type": RELAXATION}
    t = one(build(document))
    assert (len(t), t.trajectory_id) == (10, "mp-2377580-pbe")
    assert np.isfinite(t.energy).all()
    assert np.isfinite(t.positions).all()
    assert not t.faults


@pytest.mark.parametrize("value", [None, "missing", "odd", [[None]]], ids=str)
@pytest.mark.parametrize("field", ["structure", "forces", "stress", "e_fr_energy", "electronic_steps"])
def test_a_bad_field_of_a_step_costs_that_step_or_label(build, field, value):
    document = doubled()
    step = document["calcs_reversed"][0]["output"]["ionic_steps"][1]
    if value == "missing":
        del step[field]
    else:
        step[field] = value
    t = one(build(document))
    assert len(t) == 10
    assert set(t.faults) == ({8} if field in ("structure", "forces") else set())
    others = np.arange(10) != 8
    assert all(np.isfinite(getattr(t, name)[others]).all() for name in ("positions", "forces", "stress", "energy"))
    lost = {"structure": t.positions, "forces": t.forces, "stress": t.stress}.get(field)
    assert lost is None or np.isnan(lost[8]).any()
    assert np.isfinite(t.energy[8])  # from the last electronic step when the step has none


ODD = (None, True, -1, 1e300, float("nan"), "", "x", "2020", [], [[]], [None], {}, {"value": 5}, {"$date": []})


def places(node, path=()):
    """Yield the path of every node of a document."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


PLACES = list({tuple(key for key in path if isinstance(key, str)): path for path in places(doubled())}.values())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("mp")
    (root / "tasks").mkdir()
    (root / "tasks" / "a.jsonl.gz").write_bytes(b"-")
    source = opened(root, root / "work")
    return source, source.assets()[0]


@given(data=st.data())
def test_no_odd_value_anywhere_is_an_exception_or_loses_the_count(data, prepared):
    document = doubled()
    for path in data.draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=4)):
        with contextlib.suppress(KeyError, IndexError, TypeError):
            functools.reduce(operator.getitem, path[:-1], document)[path[-1]] = data.draw(st.sampled_from(ODD))
    source, asset = prepared
    asset.path.write_bytes(gzip.compress(json.dumps(document).encode()))
    [record] = source.read(asset)
    frames = sum(map(len, record.trajectories)) + sum(r.n_frames or 0 for r in record.rejections)
    assert record.n_frames == frames
    assert all(t.forces.shape == (len(t), t.n_atoms, 3) for t in record.trajectories)


@pytest.mark.parametrize("key", ["NaN", "Infinity", "null", '"x"', "1e999"])
def test_a_bad_force_component_costs_that_component(build, key):
    document = doubled()
    document["calcs_reversed"][0]["output"]["ionic_steps"][1]["forces"][3][1] = "HERE"
    t = one(build(json.dumps(document).replace('"HERE"', key).encode()))
    assert np.argwhere(~np.isfinite(t.forces)).tolist() == [[8, 3, 1]]


def test_text_that_looks_like_nan_survives(build):
    document = doubled()
    for calculation in document["calcs_reversed"]:
        for step in calculation["output"]["ionic_steps"]:
            for site in step["structure"]["sites"]:
                site["species"][0]["element"] = "Na"
            step["stress"] = [[float("nan")] * 3] * 3
    t = one(build(document | {"formula_pretty": "NaNbO3"}))
    assert t.composition == {"Na": t.n_atoms}
    assert np.isnan(t.stress).all()
    assert not t.faults


def test_a_ragged_row_of_forces_is_named(build):
    document = doubled()
    document["calcs_reversed"][1]["output"]["ionic_steps"][1]["forces"][1] = [0.0, 0.1]
    assert one(build(document)).faults == {1: "forces: row 1 has 2 components, expected 3"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"task_id": "mp-9", "calcs_reversed": [', "line 2: "),
        (b'{"task_id": "mp-9", "x": ' + b"[" * 100_000, "line 2: "),
        (b"[]", "line 2: not a document"),
        (b"null", "line 2: not a document"),
        (b'{"calcs_reversed": []}', "line 2: no task_id"),
        (b'{"task_id": "mp-9", "\xff": ', "line 2: "),
    ],
    ids=lambda x: str(x)[:30],
)
def test_a_bad_line_is_one_rejection_and_the_others_are_read(build, bad, reason):
    first, second, third = records(build(doubled(), bad, b"", task(number=1)))
    assert len(first.trajectories[0]) == 10
    assert len(third.trajectories[0]) == 4
    [rejection] = second.rejections
    assert (rejection.rejected_by, second.n_frames) == ("readable", 0)
    assert rejection.detail.startswith(reason)
    assert rejection.task_id == ("mp-9" if b"mp-9" in bad else None)


@pytest.mark.parametrize("calculations", [None, [], [None], [{"output": None}], [{"output": {"ionic_steps": []}}]])
def test_a_task_without_steps_is_counted(build, calculations):
    [record] = records(build({"task_id": "mp-9", "calcs_reversed": calculations}))
    [rejection] = record.rejections
    assert (record.n_frames, rejection.rejected_by, rejection.n_frames) == (0, "targets", 0)
    assert (rejection.task_id, rejection.detail) == ("mp-9", "no ionic steps")


def test_a_truncated_file_keeps_what_came_before(build):
    source = build(*(doubled() | {"task_id": f"mp-{i}"} for i in range(20)))
    [asset] = source.assets()
    whole = asset.path.read_bytes()
    asset.path.write_bytes(whole[:-400])
    *good, last = source.read(asset)
    assert 5 < len(good) < 20
    assert all(len(record.trajectories[0]) == 10 for record in good)
    assert last.rejections[0].detail.startswith(f"damaged after line {len(good)}: ")
    assert last.rejections[0].n_frames is None
    assert last.n_frames == 0


@pytest.mark.parametrize(("content", "text"), [(b"<html>sorry</html>", "gzip"), (b"", "the file is empty")])
def test_a_file_that_is_no_gzip_is_one_rejection(build, content, text):
    source = build(doubled())
    source.assets()[0].path.write_bytes(content)
    [asset] = source.assets()
    [record] = source.read(asset)
    assert record.rejections[0].rejected_by == "readable"
    assert text in record.rejections[0].detail


def test_a_vanished_file_is_an_error_and_no_rejection(build):
    source = build(doubled())
    [asset] = source.assets()
    asset.path.unlink()
    with pytest.raises(FileNotFoundError):
        list(source.read(asset))


def test_a_damaged_materials_file_is_an_error(build, tmp_path):
    build(doubled())
    (tmp_path / "mp/materials/m.jsonl.gz").write_bytes(b"<html>")
    with pytest.raises(SourceError, match=r"m\.jsonl\.gz: damaged after line 0"):
        opened(tmp_path / "mp", tmp_path / "other")


def test_assets_are_found_at_any_depth_and_manifests_skipped(build):
    source = build(doubled(), name="tasks_atomate2/nelements=1/sg=2/dt=3.jsonl.gz")
    [asset] = source.assets()
    asset.path.with_name("manifest.jsonl.gz").write_bytes(asset.path.read_bytes())
    assert [asset.name for asset in source.assets()] == ["mp/tasks_atomate2/nelements=1/sg=2/dt=3.jsonl.gz"]


@pytest.mark.parametrize(
    ("layout", "looked_for"),
    [
        ("auto", r"core/trajectories/ or tasks\*/\*\*/\*\.jsonl\.gz"),
        ("delta", "core/trajectories/"),
        ("jsonl", r"tasks\*/\*\*/\*\.jsonl\.gz"),
    ],
)
def test_an_empty_folder_says_what_was_looked_for(tmp_path, layout, looked_for):
    with pytest.raises(SourceError, match=f"looked for {looked_for}$"):
        open_materials_project(tmp_path, MaterialsProject(layout=layout))


def test_reading_before_preparing_is_an_error():
    source = open_materials_project(REAL, MaterialsProject())
    with pytest.raises(SourceError, match="not prepared"):
        next(source.read(source.assets()[0]))


def test_a_licence_flip_changes_the_digest_of_its_tasks_only(build):
    documents = [doubled(), task(number=1)]
    ids = [document["task_id"] for document in documents]

    def digests(licence):
        materials = [
            {"material_id": f"mp-{i}", "task_ids": [task_id], "builder_meta": {"license": chosen}}
            for i, (task_id, chosen) in enumerate(zip(ids, ("BY-C", licence), strict=True))
        ]
        source = build(*documents, materials=materials)
        return [source.facts_digest([task_id]) for task_id in ids]

    before, after = digests("BY-C"), digests("BY-NC")
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_a_new_date_alone_rebuilds_nothing(build):
    """Every database version dates all materials anew."""

    def digest(date):
        material = {"material_id": "mp-1", "task_ids": ["mp-ffhdk"], "last_updated": date}
        return build(doubled(), materials=[material]).facts_digest(["mp-ffhdk"])

    assert digest("2024-11-14") == digest("2025-09-25")


def test_index_is_built_once_and_anew_when_materials_change(build, tmp_path):
    build(doubled(), materials=[{"material_id": "mp-1", "task_ids": ["mp-ffhdk"]}])
    [first] = (tmp_path / "work").iterdir()
    stamp = first.stat().st_mtime_ns
    opened(tmp_path / "mp", tmp_path / "work")
    assert first.stat().st_mtime_ns == stamp
    build(doubled(), materials=[{"material_id": "mp-2", "task_ids": ["mp-ffhdk"]}])
    [second] = {*(tmp_path / "work").iterdir()} - {first}  # which another build may still be reading
    (tmp_path / "work" / f"{second.stem}.part").write_bytes(b"cut off")
    second.unlink()
    assert one(opened(tmp_path / "mp", tmp_path / "work")).immutable_id == "mp-2"


def test_source_travels_to_workers(build):
    assert isinstance(build(doubled()), Source)
    source = pickle.loads(pickle.dumps(build(doubled(), options=KEEP)))
    assert len(one(source)) == 10
    assert source.raw_digest(source.assets()[0]) == source.raw_digest(source.assets()[0])


def test_magnetic_moments_belong_to_the_last_frame_of_a_calculation(build):
    document = doubled()
    last = document["calcs_reversed"][0]["output"]
    moments = [m["tot"] for m in last["outcar"]["magnetization"]]
    for calculation in copy.copy(document["calcs_reversed"]):
        for site in calculation["output"]["structure"]["sites"]:
            site["properties"].pop("magmom", None)
    t = one(build(document))
    assert t.magnetic_moments[-1].tolist() == moments
    assert np.flatnonzero(np.isfinite(t.magnetic_moments).all(axis=1)).tolist() == [6, 9]
