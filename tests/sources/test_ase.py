import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import write

from making import DATA
from sources.conformance import check_source
from sources.test_vasp import OF_ASE
from trajmill import recipe
from trajmill.builder import build
from trajmill.curation import curate
from trajmill.errors import MissingExtraError, SourceError
from trajmill.recipe import load
from trajmill.sources.ase_files import AseFiles, _stress
from trajmill.stores import open_store

CELL = np.diag([4.0, 4.2, 4.4])


def frame(k=0, symbols="NaCl", *, labels=("energy", "forces", "stress"), pbc=True, cell=CELL, **info):
    """A made-up frame, each k with other numbers."""
    atoms = Atoms(
        symbols, cell=cell, pbc=pbc, positions=[[0.1 * k, 0, 0], [2.0, 2.1, 2.2], [3.0, 0, 1]][: len(Atoms(symbols))]
    )
    values = {
        "energy": -7.0 - 0.01 * k,
        "free_energy": -7.1 - 0.01 * k,
        "forces": np.full((len(atoms), 3), 0.1 * (k + 1)),
        "stress": np.array([1.0, 2, 3, 4, 5, 6]) * 1e-3,
        "magmoms": np.full(len(atoms), 0.5),
    }
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **{name: values[name] for name in labels})
    atoms.info |= info
    return atoms


def source(root, **options):
    return AseFiles(root, recipe.Ase(**({"functional": "pbe"} | options)))


def checked(root, **options):
    """Read through the kit; records of all assets."""
    found = check_source(source(root, **options), root.parent / f"{root.name}-work")
    return [record for records in found.values() for record in records]


def trajectories(records):
    return [t for record in records for t in record.trajectories]


def problems(records):
    return [(r.rejected_by, r.detail, r.n_frames) for record in records for r in record.rejections]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


KINDS = ["a.extxyz", "a.traj", "a.db", "a.json", "a.extxyz.gz"]


def put(path, images):
    if path.suffix in (".db", ".json"):
        with connect(path) as db:
            for image in images:
                db.write(image, data=image.info)
    else:
        write(path, images)


@pytest.mark.parametrize("name", KINDS)
def test_a_trajectory_file(name, root):
    images = [frame(k) for k in range(4)]
    put(root / name, images)
    (t,) = trajectories(checked(root))
    assert (t.trajectory_id, t.task_id, t.immutable_id) == (f"ase-{name}-pbe", name, f"ase-{name}")
    assert (t.source, t.asset, t.functional, t.run_type, t.license) == ("ase", f"ase/{name}", "pbe", None, None)
    assert t.relaxation_step.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(t.energy, [a.calc.results["energy"] for a in images])
    np.testing.assert_allclose(t.forces, [a.calc.results["forces"] for a in images], atol=1e-8)
    np.testing.assert_allclose(t.positions, [a.positions for a in images], atol=1e-8)
    np.testing.assert_allclose(t.lattice, [CELL] * 4)
    np.testing.assert_allclose(t.stress[0] * 1e3, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    assert t.energy_sigma0 is None
    rest, rejections = curate([t], load().rules)[0]
    assert (len(rest), rejections) == (4, [])


def test_forces_are_the_gradient_of_the_free_energy(root):
    """ASE's `energy` is the one extrapolated to zero smearing where there is a free energy too."""
    write(root / "a.traj", [frame(labels=("energy", "free_energy", "forces", "magmoms"))])
    (t,) = trajectories(checked(root))
    assert (t.energy[0], t.energy_sigma0[0]) == (-7.1, -7.0)
    assert np.isnan(t.stress).all()
    np.testing.assert_array_equal(t.magnetic_moments, [[0.5, 0.5]])


@pytest.mark.parametrize("name", ["a.traj", "a.db"])
def test_constraints_do_not_touch_the_forces(name, root):
    atoms = frame()
    atoms.set_constraint(FixAtoms([0]))
    put(root / name, [atoms])
    assert (atoms.get_forces()[0] == 0).all()
    (t,) = trajectories(checked(root))
    np.testing.assert_allclose(t.forces[0], 0.1)


def test_output_of_a_code(root):
    (root / "OUTCAR").write_bytes((OF_ASE / "OUTCAR_example_1").read_bytes())
    (root / "vasprun.xml").write_bytes((OF_ASE / "vasprun_dfpt.xml").read_bytes())
    found = trajectories(checked(root))
    assert [t.trajectory_id for t in found] == ["ase-OUTCAR-pbe", "ase-vasprun.xml-pbe"]
    for t in found:
        assert np.isfinite(t.energy).all()
        assert np.isfinite(t.forces).all()
        assert t.energy_sigma0 is not None


def test_other_atoms_make_frames_one_each(root):
    write(root / "a.extxyz", [frame(0), frame(1), frame(2, "NaBr"), frame(3)])
    records = checked(root)
    assert [record.n_frames for record in records] == [1] * 4
    assert [t.trajectory_id for t in trajectories(records)] == [f"ase-a.extxyz@{k}-pbe" for k in range(4)]


def test_a_trajectory_id_decides(root):
    images = [
        frame(0, trajectory_id="x"),
        frame(1, trajectory_id="x"),
        frame(2, "KCl", trajectory_id="y"),
        frame(3, "KBr"),
    ]
    write(root / "a.extxyz", images)
    found = trajectories(checked(root))
    assert [(t.trajectory_id, len(t)) for t in found] == [
        ("ase-a.extxyz@x-pbe", 2), ("ase-a.extxyz@y-pbe", 1), ("ase-a.extxyz@3-pbe", 1),
    ]  # fmt: skip


def test_frames_of_a_trajectory_with_other_atoms_are_counted(root):
    write(root / "a.extxyz", [frame(k, s, trajectory_id=7) for k, s in enumerate(("NaCl", "ClNa", "NaCl", "Na2Cl"))])
    (record,) = checked(root)
    (t,) = record.trajectories
    assert (record.n_frames, len(t)) == (4, 2)
    text = "other atoms, or in another order, than the frames of trajectory 7 before"
    assert problems([record]) == [("readable", text, 2)]


def test_numbers_of_stages_and_steps(root):
    numbers = [(0, 0), (0, 2), (1, 3)]
    images = [frame(k, relaxation_number=n, relaxation_step=s) for k, (n, s) in enumerate(numbers)]
    write(root / "a.extxyz", images)
    write(root / "b.extxyz", images[::-1])  # they fall: not those of this file's order
    grow, fall = trajectories(checked(root))
    assert (grow.relaxation_number.tolist(), grow.relaxation_step.tolist()) == ([0, 0, 1], [0, 2, 3])
    assert (fall.relaxation_number.tolist(), fall.relaxation_step.tolist()) == ([0, 0, 0], [0, 1, 2])


def test_files_at_any_depth_hidden_ones_left_out(root):
    for name in ("b/c/x.extxyz", "a@2.extxyz", ".hidden.extxyz", ".git/x.extxyz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, [frame()], format="extxyz")
    assert [t.trajectory_id for t in trajectories(checked(root))] == ["ase-a@2.extxyz-pbe", "ase-b/c/x.extxyz-pbe"]
    assert [a.name for a in source(root, pattern="x.*").assets()] == ["ase/b/c/x.extxyz"]


def test_a_single_file(root):
    write(root / "a.traj", [frame()])
    (t,) = trajectories(checked(root / "a.traj"))
    assert t.trajectory_id == "ase-a.traj-pbe"


# --- functional and run type

SURFACES = [
    # info, recipe: functional, run type, why not
    ({}, {}, None, None, "no functional, in info or as ase.functional"),
    ({}, {"functional": "pbe"}, "pbe", None, None),
    ({}, {"functional": "pbesol"}, "pbesol", "PBEsol", None),
    ({}, {"functional": "pbe", "run_type": "GGA+U"}, "pbe", "GGA+U", None),
    ({}, {"run_type": "r2SCAN"}, "r2scan", "r2SCAN", None),
    ({"functional": "r2SCAN"}, {"functional": "pbe", "run_type": "GGA"}, "r2scan", "r2SCAN", None),
    ({"functional": "PBE"}, {}, "pbe", None, None),
    ({"functional": "PBE"}, {"run_type": "GGA"}, "pbe", "GGA", None),
    ({"functional": "GGA+U"}, {}, "pbe", "GGA+U", None),
    ({"run_type": "PBE+U"}, {}, "pbe", "GGA+U", None),
    ({"functional": "pbe", "run_type": "GGA"}, {"run_type": "GGA+U"}, "pbe", "GGA", None),
    ({"functional": "revPBE"}, {"functional": "pbe"}, None, None, "functional revPBE"),
    ({"functional": "HSE06"}, {}, None, None, "functional HSE06"),
    (
        {"functional": "pbesol", "run_type": "PBEsol+U"},
        {},
        None,
        "PBEsol+U",
        "functional pbesol, but run type PBEsol+U",
    ),
    ({"functional": "pbe", "run_type": "SCAN"}, {}, None, "SCAN", "functional pbe, but run type SCAN"),
    ({"run_type": "SCAN+U"}, {"functional": "scan"}, None, "SCAN+U", "functional SCAN+U"),
]


@pytest.mark.parametrize(("info", "options", "functional", "run_type", "reason"), SURFACES)
def test_functional_and_run_type(info, options, functional, run_type, reason, root):
    write(root / "a.extxyz", [frame(**info)])
    (t,) = trajectories(checked(root, **({"functional": None} | options)))
    assert (t.functional, t.run_type) == (functional, run_type)
    _, rejections = curate([t], load().rules)[0]
    assert [(r.rejected_by, r.detail) for r in rejections] == ([("unsupported_functional", reason)] if reason else [])


def test_two_functionals_in_one_trajectory(root):
    write(root / "a.extxyz", [frame(0, functional="pbe"), frame(1, functional="scan")])
    (t,) = trajectories(checked(root))
    assert t.findings == {"unsupported_functional": "several in one trajectory: pbe, scan"}


# --- labels


def test_labels_with_a_prefix_come_before_a_calculators(root):
    """As MACE's files have them: the reference under REF_, a model's in the calculator."""
    atoms = frame()
    atoms.info |= {"REF_energy": -9.0, "REF_stress": 2e-3 * np.eye(3)}
    atoms.arrays["REF_forces"] = np.full((2, 3), 0.7)
    write(root / "a.extxyz", [atoms])
    (t,) = trajectories(checked(root))
    assert (t.energy[0], t.forces[0, 0, 0], t.stress[0, 0, 0]) == (-9.0, 0.7, 2e-3)
    (t,) = trajectories(checked(root, prefix="dft_"))
    assert (t.energy[0], t.forces[0, 0, 0], t.stress[0, 0, 0]) == (-7.0, 0.1, 1e-3)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ((), "energy is missing or not finite"),
        (("forces",), "energy is missing or not finite"),
        (("energy",), "forces are missing"),
        (("energy", "forces"), None),
    ],
)
def test_frames_without_labels_are_counted(labels, reason, root):
    write(root / "a.traj", [frame(0, labels=labels)])
    (record,) = checked(root)
    assert record.n_frames == 1
    _, rejections = curate(record.trajectories, load().rules)[0]
    assert [(r.rejected_by, r.detail) for r in rejections] == ([("targets", reason)] if reason else [])


STRESSES = [
    # given, matrix
    ([1, 2, 3, 4, 5, 6], [[1, 6, 5], [6, 2, 4], [5, 4, 3]]),
    (np.diag([1.0, 2, 3]), np.diag([1.0, 2, 3])),
    (np.diag([1.0, 2, 3]).reshape(9), np.diag([1.0, 2, 3])),
    ([[1, 6e-4, 0], [0, 1, 0], [0, 0, 1]], [[1, 6e-4, 0], [0, 1, 0], [0, 0, 1]]),
    ([[1, 7e-4, 0], [0, 1, 0], [0, 0, 1]], None),  # more than 1 kBar
    (np.full((3, 3), np.nan), None),
    (np.diag([np.inf] * 3), None),
    ([1.0, 2.0], None),
    ("none", None),
    (None, None),
]


@pytest.mark.parametrize(("given", "matrix"), STRESSES)
def test_a_stress_that_is_none_costs_the_label(given, matrix):
    np.testing.assert_array_equal(_stress(given), np.full((3, 3), np.nan) if matrix is None else matrix)


# --- geometry


def test_atoms_without_a_cell_are_turned_away_with_a_reason(root):
    write(root / "a.traj", [frame(cell=None, pbc=False)])
    (t,) = trajectories(checked(root))
    rest, rejections = curate([t], load().rules)[0]
    assert rest is None
    assert [(r.rejected_by, r.detail) for r in rejections] == [("geometry", "0 A^3 per atom, at least 0.1 wanted")]


def test_a_cell_that_is_not_periodic_in_all_directions_is_noted(root):
    write(root / "a.traj", [frame(0), frame(1, pbc=(True, True, False))])
    (t,) = trajectories(checked(root))
    assert t.notes == ("periodic in TTF only, taken as periodic in all directions",)
    assert len(curate([t], load().rules)[0][0]) == 2


def test_an_atom_that_is_no_element_is_counted(root):
    write(root / "a.traj", [frame(0, "NaX")])
    assert problems(checked(root)) == [("readable", "no element has the atomic number 0", 1)]


def test_no_atoms_at_all(root):
    write(root / "a.traj", [Atoms(cell=CELL, pbc=True)])
    (record,) = checked(root)
    assert record.n_frames == 1
    assert curate(record.trajectories, load().rules)[0][0] is None


# --- bad input


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", b"# not atoms\n"),
        ("empty.extxyz", b""),
        ("INCAR", b"ENCUT = 520\n"),
        ("a.extxyz", b"2\nno properties\nNa 0 0\n"),
        ("a.traj", b"- of Ulm" + b"\x00" * 50),
        ("a.db", b"SQLite format 3\x00" + b"\x00" * 100),
        ("a.json", b"{"),
        ("vasprun.xml", b"<?xml version='1.0'?><modeling>"),
        ("OUTCAR", b" vasp.5.4.4\n"),
        ("x.bin", bytes(range(256)) * 20),
    ],
)
def test_what_ase_cannot_read_is_one_rejection(name, content, root):
    (root / name).write_bytes(content)
    ((record,),) = [checked(root)]
    assert record.n_frames == 0
    ((rule, detail, n_frames),) = problems([record])
    assert (rule, n_frames) == ("readable", None)
    assert detail.startswith(("ASE cannot read it: ", "no frames in this file"))
    assert "\n" not in detail


def test_what_was_read_before_the_damage_stays(root):
    write(root / "a.extxyz", [frame(k) for k in range(3)])
    text = (root / "a.extxyz").read_text()
    (root / "a.extxyz").write_text(text[: text.rindex("Cl")])
    *good, bad = checked(root)
    assert [len(t) for t in trajectories(good)] == [2]
    ((rule, detail, n_frames),) = problems([bad])
    assert (rule, n_frames) == ("readable", None)
    assert detail.startswith("ASE cannot read it after 2 frames: ")


def test_the_disk_is_not_blamed_on_the_file(root, monkeypatch):
    write(root / "a.extxyz", [frame()])

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ase.io.iread", broken)
    with pytest.raises(OSError, match="Input/output error"):
        list(source(root).read(source(root).assets()[0]))


def test_nothing_to_read(root):
    with pytest.raises(SourceError, match=r"no files here whose names match \*\.extxyz"):
        source(root, pattern="*.extxyz").assets()


def test_without_ase_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "ase.io", None)
    with pytest.raises(MissingExtraError, match=r"ase is not installed: pip install 'trajmill\[ase\]'"):
        source(root).prepare(root)


# --- all the way


def test_build(root, tmp_path):
    for k in range(2):
        write(root / f"{k}.extxyz", [frame(k, s) for s in ("NaCl", "KCl") for k in range(3)])
    write(root / "run.traj", [frame(k) for k in range(5)])
    write(root / "bare.extxyz", [frame(labels=())])
    (root / "README").write_text("mine")
    settings = [
        f"ase.path='{root}'", "ase.functional=pbe", "ase.license=CC-BY-4.0", f"store.path='{tmp_path / 'store'}'",
        "engine.workers=1",
    ]  # fmt: skip
    summary = build(load(settings=settings))
    assert not summary.failed
    balance = summary.balance
    assert balance.frames == 2 * 6 + 5 + 1
    assert (balance.kept, dict(balance.rejected)) == (17, {"targets": 1})
    store = open_store(str(tmp_path / "store"))
    rows = [row for batch in store.read("frame") for row in batch.to_pylist()]
    assert {(row["source"], row["license"], row["functional"]) for row in rows} == {("ase", "CC-BY-4.0", "pbe")}
    assert len({row["id"] for row in rows}) == 17
    other = build(load(settings=[*settings, "ase.functional=scan"]))
    assert len(other.built) == len(summary.built), "another functional makes other rows"


def test_what_trajmill_converts_comes_back(tmp_path):
    """From Alexandria to extended XYZ and through this source: the same frames of the same trajectories."""
    from trajmill.converting import convert
    from trajmill.dataset import Dataset

    store = tmp_path / "store"
    build(load(settings=[f"alexandria.path='{DATA / 'alexandria'}'", f"store.path='{store}'", "engine.workers=1"]))
    dataset = Dataset(str(store))
    convert(dataset, tmp_path / "raw.extxyz", "extxyz")
    found = trajectories(checked(tmp_path / "raw.extxyz", functional=None))
    assert {t.trajectory_id for t in found} == {
        f"ase-raw.extxyz@{t.trajectory_id}-{t.functional}" for t in dataset.trajectories()
    }
    before = {t.trajectory_id: t for t in dataset.trajectories()}
    for t in found:
        right = before[t.task_id.removeprefix("raw.extxyz@")]
        np.testing.assert_allclose(t.energy, right.energy, rtol=0, atol=1e-6)
        np.testing.assert_allclose(t.forces, right.forces, rtol=0, atol=1e-6)
        np.testing.assert_allclose(t.stress, right.stress, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(t.relaxation_step, right.relaxation_step)
        assert (t.functional, t.run_type) == (right.functional, right.run_type)


def test_the_command_line(root, tmp_path):
    write(root / "a.traj", [frame(k) for k in range(3)])
    command = [
        sys.executable,
        "-m",
        "trajmill.cli",
        "build",
        "--ase",
        root,
        "--vasp",
        DATA / "vasp",
        "--out",
        tmp_path / "s",
    ]
    command += ["--workers", "1", "--set", "ase.functional=pbe"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "10 assets built, 0 unchanged" in done.stdout
