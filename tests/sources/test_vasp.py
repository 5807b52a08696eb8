import bz2
import gzip
import lzma
import re
import tracemalloc
import warnings
from importlib.resources import files

import numpy as np
import pytest

import vaspruns
from making import DATA
from mp_samples import KEEP, by_id, opened, records
from sources.conformance import assert_equal, check_source
from trajmill import recipe
from trajmill.builder import build
from trajmill.curation import curate
from trajmill.errors import SourceError
from trajmill.physics import pairs_of, passes
from trajmill.recipe import load
from trajmill.sources.base import RELAXATION
from trajmill.sources.vasp import Vasp
from trajmill.sources.vasp_inputs import read_settings
from trajmill.sources.vasp_xml import read_vasprun
from trajmill.stores import open_store
from trajmill.units import KBAR_PER_EV_PER_A3

ROOT = DATA / "vasp"
OF_ASE = files("ase.test") / "testdata" / "vasp"
"""Written by VASP itself; they come with ASE."""

REAL = [path for name in ("pstress", "dfpt") if (path := OF_ASE / f"vasprun_{name}.xml").is_file()]  # by its version
SAMPLES = sorted(path for path in ROOT.rglob("*vasprun*.xml*") if path.is_file())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return check_source(Vasp(ROOT), tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def trajectories(found):
    return {t.trajectory_id: t for rs in found.values() for r in rs for t in r.trajectories}


def text_of(path):
    content = path.read_bytes()
    for ending, unpack in ((".gz", gzip.decompress), (".bz2", bz2.decompress), (".xz", lzma.decompress)):
        if path.name.endswith(ending):
            content = unpack(content)
    return content


def read(root, **options):
    source = Vasp(root, recipe.Vasp(**options))
    return [record for asset in source.assets() for record in source.read(asset)]


def put(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vaspruns.packed(name, text))
    return path


def problems(found):
    return [(r.task_id, r.rejected_by, r.detail, r.n_frames) for record in found for r in record.rejections]


def ids(found):
    return [t.trajectory_id for record in found for t in record.trajectories]


@pytest.fixture(scope="module")
def stages():
    """Both runs of a relaxation of silicon."""
    return [vaspruns.sample(f"Si/vasprun.xml.relax{i}.gz") for i in (1, 2)]


# --- the parser


@pytest.mark.parametrize("path", [*REAL, *SAMPLES], ids=lambda p: "/".join(p.parts[-2:]))
def test_the_parser_agrees_with_pymatgen(path, tmp_path):
    from pymatgen.io.vasp import Vasprun

    plain = tmp_path / "vasprun.xml"
    plain.write_bytes(text_of(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = Vasprun(plain, parse_dos=False, parse_eigen=False, parse_potcar_file=False, exception_on_bad_xml=False)
    run = read_vasprun([plain.read_bytes()])
    steps = right.ionic_steps[: len(run)]  # of a file that is cut off, pymatgen takes the broken step too
    assert run.n_frames == text_of(path).count(b"<calculation>")
    assert run.elements == right.atomic_symbols
    assert [spec["titel"] for spec in run.given.potcar_spec] == right.potcar_symbols
    np.testing.assert_array_equal(run.lattice, [step["structure"].lattice.matrix for step in steps])
    np.testing.assert_array_equal(run.fractional, [step["structure"].frac_coords for step in steps])
    np.testing.assert_array_equal(run.energy, [step["e_fr_energy"] for step in steps])
    np.testing.assert_array_equal(run.electronic_steps, [len(step["electronic_steps"]) for step in steps])
    for name in ("forces", "stress"):
        np.testing.assert_array_equal(getattr(run, name), [step[name] for step in steps])
    ends = [step["electronic_steps"][-1] for step in steps]
    smearing = [end["e_0_energy"] - end["e_fr_energy"] for end in ends]
    np.testing.assert_allclose(run.energy_sigma0, run.energy + smearing, rtol=0, atol=1e-9)
    for name in ("NSW", "NELM", "IBRION", "ISIF", "ISPIN", "ENMAX", "LDAU", "LHFCALC", "PSTRESS", "ISMEAR"):
        if name in right.parameters:
            assert run.given.parameters[name] == right.parameters[name], name
    assert {name: value for name, value in right.hubbards.items() if value} == read_settings(run.given).hubbard_u


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.name)
def test_the_parser_agrees_with_ase(path):
    from ase.io import iread

    (record,) = read(path)
    (t,) = record.trajectories
    for i, atoms in enumerate(iread(path, index=":", format="vasp-xml")):
        results = atoms.calc.results
        np.testing.assert_array_equal(t.numbers, atoms.numbers)
        np.testing.assert_allclose(t.positions[i], atoms.positions, atol=1e-12)
        np.testing.assert_allclose(t.forces[i], results["forces"], atol=1e-12)
        assert t.energy[i] == pytest.approx(results["free_energy"], abs=1e-7)
        assert t.energy_sigma0[i] == pytest.approx(results["energy"], abs=1e-7)


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_where_chunks_end_does_not_matter(size, stages):
    content = stages[1].encode()
    whole = read_vasprun([content])
    assert_equal(read_vasprun(content[i : i + size] for i in range(0, len(content), size)), whole)
    assert (len(whole), whole.n_frames, whole.problem) == (1, 1, "")


def test_memory_does_not_depend_on_what_is_skipped(stages):
    head, tail = stages[1].encode().split(b"  <eigenvalues>\n")
    row = b"     <r>   -5.0000    1.0000 </r>\n" * 30_000

    def chunks():
        yield head + b"  <eigenvalues>\n"
        for _ in range(40):
            yield row
        yield tail

    tracemalloc.start()
    run = read_vasprun(chunks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(run) == 1
    assert peak < 8 * len(row), "40 of them went by"


def test_a_piece_without_an_end_does_not_take_the_rest_with_it(stages):
    begin = stages[0].index('<varray name="forces" >')
    end = stages[0].index("</varray>", begin)
    run = read_vasprun([(stages[0][:end] + stages[0][end + len("</varray>") :]).encode()])
    assert (len(run), run.n_frames) == (3, 3)
    assert run.faults.keys() == {0}
    assert run.faults[0].startswith("forces has ")
    assert np.isnan(run.forces[0]).all()
    assert np.isfinite(run.forces[1:]).all()
    begin = stages[0].index("</structure>", stages[0].index("<calculation>"))
    run = read_vasprun([(stages[0][:begin] + stages[0][begin + len("</structure>") :]).encode()])
    assert (len(run), run.n_frames) == (2, 3)  # the step has no end either; the next ones are read


@pytest.mark.parametrize(
    ("written", "faults", "frames_kept"),
    [
        ("****************", {}, 2),
        ("NaN", {}, 2),
        ("1.0 2.0", {1: "forces has 7 numbers, expected 6"}, 2),
        ("", {1: "forces has 5 numbers, expected 6"}, 2),
    ],
)
def test_a_bad_number_costs_its_frame(written, faults, frames_kept, stages, tmp_path):
    parts = stages[0].split('<varray name="forces" >')
    parts[2] = re.sub(r"-?\d+\.\d+", written, parts[2], count=1)
    put(tmp_path, "a/vasprun.xml", '<varray name="forces" >'.join(parts))
    ((t,),) = (record.trajectories for record in read(tmp_path))
    assert t.faults == faults
    assert np.isnan(t.forces[1]).any()
    rest, rejections = curate([t], load().rules)[0]
    assert len(rest) == frames_kept
    assert [(r.rejected_by, r.relaxation_step) for r in rejections] == [("targets", 1)]


def test_a_bad_stress_costs_the_label(stages, tmp_path):
    parts = stages[0].split('<varray name="stress" >')
    parts[1] = re.sub(r"-?\d+\.\d+", "*********", parts[1], count=1)
    put(tmp_path, "vasprun.xml", '<varray name="stress" >'.join(parts))
    ((t,),) = (record.trajectories for record in read(tmp_path))
    assert np.isnan(t.stress).all(axis=(1, 2)).tolist() == [True, False, False]
    assert t.faults == {}


def test_the_energy_of_the_last_electronic_step_stands_in(stages):
    """Where the ionic step has none. Its own e_0_energy is never taken: VASP 5 writes the electronic entropy there."""
    text = re.sub(r'(</varray>\n  <energy>\n) +<i name="e_fr_energy">.*\n', r"\1", stages[1])
    other = text.replace("</varray>\n  <energy>", '</varray>\n  <energy>\n   <i name="e_0_energy"> 0.125 </i>')
    whole = read_vasprun([stages[1].encode()])
    for spoilt in (text, other):
        assert spoilt != stages[1]
        run = read_vasprun([spoilt.encode()])
        np.testing.assert_allclose(run.energy, whole.energy, rtol=0, atol=1e-6)
        np.testing.assert_allclose(run.energy_sigma0, whole.energy_sigma0, rtol=0, atol=1e-6)


def test_an_unescaped_comment_in_the_incar_does_no_harm(stages):
    text = stages[0].replace(" <incar>\n", ' <incar>\n  <i type="string" name="SYSTEM">a & b < c</i>\n', 1)
    run = read_vasprun([text.encode()])
    assert_equal(run.energy, read_vasprun([stages[0].encode()]).energy)
    assert run.given.incar["ENCUT"] == 520


def test_elements_that_vasp_cuts_are_read_from_the_potential(stages):
    text = stages[0].replace("<c>Si</c>", "<c>r </c>").replace("PAW_PBE Si ", "PAW_PBE Zr_sv ")
    run = read_vasprun([text.encode()])
    assert run.elements == ["Zr", "Zr"]
    assert read_settings(run.given).potentials == ("Zr_sv",)


# --- what becomes of a folder


def test_every_sample_is_one_that_can_be_made_again():
    assert {path.relative_to(ROOT).as_posix() for path in SAMPLES} >= vaspruns.SAMPLES.keys()
    for name in vaspruns.SAMPLES:
        assert text_of(ROOT / name).decode("latin-1") == vaspruns.sample(name)


def test_assets_are_folders_with_those_of_their_stages(found):
    assert list(found) == [
        f"vasp/{name}" for name in "Au Fe2O3 LiFeO2 Si Si/hse Si/static V2O5 Y2Mg3P4O16 YMgP2O8".split()
    ]


def test_runs_that_continue_each_other_are_one_relaxation(trajectories):
    for name, counts in (("vasp-Si/vasprun.xml.relax1-pbe", [3, 1]), ("vasp-Y2Mg3P4O16/relax_1-pbe", [15, 1])):
        t = trajectories[name]
        assert np.bincount(t.relaxation_number).tolist() == counts
        assert t.relaxation_step.tolist() == list(range(sum(counts)))
        assert t.relaxation_converged is True
        assert t.task_id == name.removeprefix("vasp-").removesuffix("-pbe")


def test_runs_with_a_gap_between_them_are_not_joined(trajectories):
    """Real: the second begins 0.04 A from where the first ended; another run between them was not kept."""
    first, second = (trajectories[f"vasp-YMgP2O8/vasprun.relax{i}.xml-pbe"] for i in (1, 2))
    assert (len(first), len(second)) == (93, 15)
    assert not first.relaxation_number.any()
    assert not second.relaxation_number.any()
    assert second.relaxation_step[0] == 0


def test_settings_are_those_of_the_run(trajectories):
    t = trajectories["vasp-Fe2O3-pbe"]
    assert (t.run_type, t.hubbard_u, t.potentials) == ("GGA+U", {"Fe": 5.3}, ("Fe_pv", "O"))
    assert t.task_type == RELAXATION
    assert (t.functional, trajectories["vasp-LiFeO2-pbesol"].functional) == ("pbe", "pbesol")
    assert set(t.encut) == {520.0}
    assert set(t.nelm) == {100}
    assert t.license is None
    assert t.last_modified == "2020-12-08T09:15:16"


def test_the_same_as_the_materials_project_reader_makes_of_the_same_runs(trajectories, tmp_path_factory):
    of_mp = {}
    for folder in ("derived", "double"):
        of_mp |= by_id(records(opened(DATA / "mp" / folder, tmp_path_factory.mktemp("mp"), KEEP)))
    for name, other in (
        ("vasp-Y2Mg3P4O16/relax_1-pbe", "local-0502-pbe"),
        ("vasp-Si/vasprun.xml.relax1-pbe", "local-0014-pbe"),
        ("vasp-Fe2O3-pbe", "local-0085-pbe"),
        ("vasp-LiFeO2-pbesol", "local-0080-pbesol"),
    ):
        t, right = trajectories[name], of_mp[other]
        for field in ("energy", "energy_sigma0", "forces", "stress", "lattice", "positions"):
            np.testing.assert_allclose(getattr(t, field), getattr(right, field), rtol=0, atol=2e-7, err_msg=field)
        for field in (
            "numbers run_type functional task_type hubbard_u potentials encut nelm ispin electronic_steps "
            "relaxation_number relaxation_step relaxation_converged"
        ).split():
            assert_equal(getattr(t, field), getattr(right, field))


def test_rules_turn_away_what_is_no_relaxation_or_has_another_functional(trajectories):
    owners = {}
    for name, t in trajectories.items():
        for rejection in curate([t], load().rules)[0][1]:
            owners.setdefault(rejection.rejected_by, {})[name] = rejection.detail
    assert owners["task_type"] == {"vasp-Si/static-r2scan": "Static is no structure optimisation"}
    assert owners["unsupported_functional"] == {
        "vasp-Au-revPBE+PADE": "run type revPBE+PADE",
        "vasp-Si/hse-HSE06": "run type HSE06",
    }
    assert owners["electronic_convergence"] == {"vasp-V2O5-pbe": "100 electronic steps, NELM 100"}


def test_units_and_signs_of_real_relaxations(tmp_path):
    """Five real double relaxations, and the pairs of steps that tell the unit of stress."""
    for task in ("0501", "0502", "0503", "0509", "0510"):
        for number in (0, 1):
            calc = vaspruns.calculation("double/tasks/atomate-double_vasp_outputs", f"local-{task}", number)
            put(tmp_path, f"{task}/vasprun.xml.relax{number + 1}", vaspruns.vasprun(calc))
    read_back = [t for record in read(tmp_path) for t in record.trajectories]
    pairs = pairs_of(read_back).residuals()
    assert len(pairs) > 40
    assert passes(pairs), (np.median(pairs), (pairs < 0.25).mean())
    for factor in (-1.0, 0.1, 10.0, KBAR_PER_EV_PER_A3):
        assert not passes(pairs_of(read_back).residuals(factor))


# --- continuity


def shifted(text, by, what="positions"):
    """Move the first atom (or the first lattice vector) of every structure along x."""
    pattern = rf'(<varray name="{what}" >\s*<v>\s*)(-?\d+\.\d+)'
    return re.sub(pattern, lambda m: f"{m[1]}{float(m[2]) + by:.8f}", text)


@pytest.mark.parametrize(
    ("change", "joined"),
    [
        (lambda text: text, True),
        (lambda text: shifted(text, 1.0), True),  # a periodic image
        (lambda text: shifted(text, -2.0), True),
        (lambda text: shifted(text, 1e-5), True),  # 4e-5 A
        (lambda text: shifted(text, 1e-4), False),
        (lambda text: shifted(text, 5e-5, "basis"), True),
        (lambda text: shifted(text, 2e-4, "basis"), False),
        (lambda text: shifted(text, float("nan")), False),
        (lambda text: shifted(text, float("inf")), False),
        (lambda text: shifted(text, float("nan"), "basis"), False),
        (lambda text: text.replace("Si", "Ge"), False),
        (lambda text: text.replace("PAW_PBE Si ", "PAW_PBE Si_sv_GW "), False),
        (lambda text: text.replace(" <incar>\n", ' <incar>\n  <i type="string" name="GGA">PS</i>\n'), False),
        (lambda text: text.replace(" <incar>\n", ' <incar>\n  <i type="int" name="ISIF">2</i>\n').replace(
            '<i type="int" name="ISIF">     3</i>', ""), False),
        (lambda text: re.sub(r'name="(ENCUT|ENMAX)">[^<]*', r'name="\1"> 400.0', text), True),
    ],
)  # fmt: skip
def test_continuity(change, joined, stages, tmp_path):
    put(tmp_path, "a/vasprun.xml.relax1", stages[0])
    put(tmp_path, "a/vasprun.xml.relax2", change(stages[1]))
    found = read(tmp_path)
    assert sum(record.n_frames for record in found) == 4
    assert [np.bincount(t.relaxation_number).tolist() for r in found for t in r.trajectories] == (
        [[3, 1]] if joined else [[3], [1]]
    )


@pytest.mark.parametrize(
    "names",
    [
        ("vasprun.xml.relax1.gz", "vasprun.xml.relax2.gz"),
        ("vasprun.relax1.xml", "vasprun.relax2.xml.gz"),
        ("relax9_vasprun.xml", "relax10_vasprun.xml"),
        ("vasprun.xml.relax1", "vasprun.xml"),
        ("relax1/vasprun.xml", "relax2/vasprun.xml"),
        ("relax_2/vasprun.xml.gz", "relax_10/vasprun.xml.gz"),
        ("01_opt/vasprun.xml", "02-opt/vasprun.xml"),
        ("relax/vasprun.xml", "vasprun.xml"),
    ],
)
def test_stages_are_found_however_they_are_named(names, stages, tmp_path):
    for name, text in zip(names, stages, strict=True):
        put(tmp_path, f"of mine/a/{name}", text)
    (asset,) = Vasp(tmp_path).assets()
    assert asset.name == "vasp/of mine/a"
    (t,) = (t for record in read(tmp_path) for t in record.trajectories)
    assert t.relaxation_number.tolist() == [0, 0, 0, 1]


def test_many_relaxations_in_one_folder(stages, tmp_path):
    others = [vaspruns.sample(f"Y2Mg3P4O16/relax_{i}/vasprun.xml.gz") for i in (1, 2)]
    for number in (1, 2):
        put(tmp_path, f"Si_vasprun.xml.relax{number}", stages[number - 1])
        put(tmp_path, f"YMg_vasprun.xml.relax{number}.gz", others[number - 1])
    found = [t for record in read(tmp_path) for t in record.trajectories]
    assert [np.bincount(t.relaxation_number).tolist() for t in found] == [[3, 1], [15, 1]]


def test_what_lies_between_two_stages_does_not_part_them(stages, tmp_path):
    static = vaspruns.sample("Si/static/vasprun.xml.gz")
    for name, text in (("relax1", stages[0]), ("relax1.static", static), ("relax2", stages[1])):
        put(tmp_path, f"vasprun.xml.{name}", text)
    assert ids(read(tmp_path)) == ["vasp-vasprun.xml.relax1.static-r2scan", "vasp-vasprun.xml.relax1-pbe"]


def test_folders_that_are_no_stages_are_assets_of_their_own(stages, tmp_path):
    for folder, text in zip(("mp-149", "mp-150"), stages, strict=True):
        put(tmp_path, f"{folder}/vasprun.xml", text)
    put(tmp_path, "vasprun.xml", stages[0])
    assert [a.name for a in Vasp(tmp_path).assets()] == ["vasp/.", "vasp/mp-149", "vasp/mp-150"]
    assert ids(read(tmp_path)) == ["vasp-vasprun.xml-pbe", "vasp-mp-149-pbe", "vasp-mp-150-pbe"]


def test_a_stage_folder_at_the_root_is_its_own(stages, tmp_path):
    put(tmp_path, "relax1/vasprun.xml", stages[0])
    assert [a.name for a in Vasp(tmp_path / "relax1").assets()] == ["vasp/."]


def test_a_single_file(stages, tmp_path):
    path = put(tmp_path, "vasprun.xml.gz", stages[0])
    check_source(Vasp(path), tmp_path / "work")
    assert ids(read(path)) == ["vasp-vasprun.xml-pbe"]


def test_a_copy_that_is_compressed_is_a_duplicate(stages, tmp_path):
    put(tmp_path / "raw", "a/vasprun.xml", stages[1])
    put(tmp_path / "raw", "a/vasprun.xml.gz", stages[1])
    settings = [f"vasp.path='{tmp_path / 'raw'}'", f"store.path='{tmp_path / 'store'}'", "engine.workers=1"]
    balance = build(load(settings=settings)).balance
    assert (balance.frames, balance.kept, dict(balance.rejected)) == (2, 1, {"duplicate_trajectory": 1})


def test_ids_do_not_depend_on_what_lies_beside(stages, tmp_path):
    put(tmp_path, "a/vasprun.xml.relax1.gz", stages[0])
    before = ids(read(tmp_path))
    put(tmp_path, "a/vasprun.xml.relax2.gz", stages[1])
    put(tmp_path, "b/vasprun.xml", stages[1])
    assert ids(read(tmp_path)) == [*before, "vasp-b-pbe"]
    (tmp_path / "a/vasprun.xml.relax1.gz").unlink()
    put(tmp_path, "a/vasprun.xml.relax1", stages[0])
    assert ids(read(tmp_path))[0] == before[0]


# --- bad input


def cuts(text):
    """Places to cut a file with three ionic steps: before any, within each, between two, in the end."""
    begins = [m.start() for m in re.finditer("<calculation>", text)]
    ends = [m.end() for m in re.finditer("</calculation>", text)]
    return [
        (begins[0] - 5, 0, 0),
        (begins[0] + 30, 0, 1),
        (ends[0] - 5, 0, 1),
        (ends[0], 1, 1),
        (begins[1] + 4, 1, 1),
        (begins[1] + 300, 1, 2),
        (ends[1] + 2, 2, 2),
        (ends[2] - 1, 2, 3),
        (ends[2] + 300, 3, 3),
    ]


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("name", ["vasprun.xml", "vasprun.xml.gz", "vasprun.xml.bz2", "vasprun.xml.xz"])
def test_a_run_that_was_killed_keeps_its_complete_steps(name, k, stages, tmp_path):
    at, complete, begun = cuts(stages[0])[k]
    put(tmp_path, name, stages[0][:at])
    (record,) = check_source(Vasp(tmp_path), tmp_path / "work")["vasp/."]
    assert record.n_frames == begun
    assert sum(len(t) for t in record.trajectories) == complete
    lost = problems([record])
    assert [(rule, n) for _, rule, _, n in lost] == (
        [("readable", begun - complete or None)] if begun > complete or not complete else []
    )
    assert all("the file ends before VASP did" in detail for _, _, detail, _ in lost)
    for t in record.trajectories:
        assert t.relaxation_converged is None
        assert t.notes == (f"vasprun.xml is kept up to ionic step {complete - 1}: the file ends before VASP did",)


@pytest.mark.parametrize("name", ["vasprun.xml.gz", "vasprun.xml.bz2", "vasprun.xml.xz"])
def test_a_damaged_compressed_file(name, tmp_path):
    long = vaspruns.calculation("double/tasks/atomate-double_vasp_outputs", "local-0504", 0)
    whole = vaspruns.packed(name, vaspruns.vasprun(long))
    (tmp_path / name).write_bytes(whole[:-5000])
    (record,) = read(tmp_path)
    (t,) = record.trajectories
    assert 150 < len(t) <= record.n_frames <= len(t) + 1  # bz2 has blocks of 900 kB, of which none is read in part
    assert "damaged or truncated file" in t.notes[0]
    (tmp_path / name).write_bytes(b"\x00" * 100)
    assert [(rule, n) for _, rule, _, n in problems(read(tmp_path))] == [("readable", None)]


def test_a_stage_after_one_that_was_killed_counts_on(stages, tmp_path):
    """The step that was cut off had a number too."""
    at = cuts(stages[0])[7][0]
    last = read_vasprun([stages[0][:at].encode()])
    first_geometry = vaspruns.calculation("derived/tasks/a2_vasp_outputs", "local-0014", 0)
    steps = first_geometry["output"]["ionic_steps"]
    first_geometry["output"]["ionic_steps"] = steps[1:]
    assert len(last) == 2
    put(tmp_path, "vasprun.xml.1", stages[0][:at])
    put(tmp_path, "vasprun.xml.2", vaspruns.vasprun(first_geometry))
    (record,) = read(tmp_path)
    (t,) = record.trajectories
    assert record.n_frames == 5
    assert t.relaxation_step.tolist() == [0, 1, 3, 4]
    assert t.relaxation_number.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("content", [b"", b"no XML", b"<?xml version='1.0'?>\n<modeling>\n", b"\xff\xfe" * 500])
def test_what_is_no_vasprun_is_one_rejection(content, tmp_path):
    (tmp_path / "vasprun.xml").write_bytes(content)
    (record,) = check_source(Vasp(tmp_path), tmp_path / "work")["vasp/."]
    assert (record.n_frames, problems([record])) == (
        0, [("vasprun.xml", "readable", "the file ends before VASP did", None)],
    )  # fmt: skip


def test_a_second_run_in_the_same_file_is_turned_away(stages, tmp_path):
    put(tmp_path, "vasprun.xml", stages[0] + stages[1])
    (record,) = check_source(Vasp(tmp_path), tmp_path / "work")["vasp/."]
    text = "1 of 4 ionic steps not complete: steps without an end, or another run in the same file"
    assert problems([record]) == [("vasprun.xml", "readable", text, 1)]


def test_a_whole_file_without_ionic_steps(stages, tmp_path):
    text = re.sub(r" <calculation>.*</calculation>\n", "", stages[0], flags=re.DOTALL)
    put(tmp_path, "vasprun.xml", text)
    assert problems(read(tmp_path)) == [("vasprun.xml", "targets", "no ionic steps", 0)]


def test_unknown_elements_are_counted(stages, tmp_path):
    put(tmp_path, "vasprun.xml", stages[0].replace("<c>Si</c>", "<c>Qq</c>").replace("PAW_PBE Si ", "PAW_PBE Qq "))
    (record,) = read(tmp_path)
    assert (record.n_frames, problems([record])) == (3, [("vasprun.xml", "readable", "unknown elements Qq", 3)])


def test_an_outer_pressure_is_taken_off_the_energy(stages, tmp_path):
    """As VASP writes it (ASE's newer versions have such a file): the ionic step's energy has pV, that of the last
    electronic step has not."""
    text = stages[1].replace(" <incar>\n", ' <incar>\n  <i name="PSTRESS">     16.00000000</i>\n')
    right = read_vasprun([stages[1].encode()])
    enthalpy = right.energy[0] + 16.0 / KBAR_PER_EV_PER_A3 * np.linalg.det(right.lattice[0])
    head, tail = text.rsplit("</scstep>", 1)
    put(tmp_path, "vasprun.xml", head + "</scstep>" + tail.replace(f"{right.energy[0]:.8f}", f"{enthalpy:.8f}"))
    found = [(tmp_path, right.energy[0])]
    found += [(path, -20.24695937) for path in REAL if "pstress" in path.name]
    for place, energy in found:
        ((t,),) = (record.trajectories for record in read(place))
        assert t.energy[0] == pytest.approx(energy, abs=1e-7)
        assert np.isnan(t.stress).all()
        assert t.notes == ("PSTRESS: its work is taken off the energy, no stress",)


def test_nothing_to_read(tmp_path):
    (tmp_path / "OUTCAR").touch()
    with pytest.raises(SourceError, match=r"no vasprun.xml files here, compressed \(.gz, .bz2, .xz\) or not"):
        Vasp(tmp_path).assets()


def test_the_digest_follows_content_and_names(stages, tmp_path):
    put(tmp_path, "vasprun.xml", stages[0])
    source = Vasp(tmp_path)
    (asset,) = source.assets()
    digests = {source.raw_digest(asset)}
    put(tmp_path, "vasprun.xml.relax1", stages[0])
    digests.add(source.raw_digest(asset))
    put(tmp_path, "vasprun.xml", stages[1])
    digests.add(source.raw_digest(asset))
    assert len(digests) == 3


def test_build(tmp_path):
    settings = [f"vasp.path='{ROOT}'", "vasp.license=CC0-1.0", f"store.path='{tmp_path / 'store'}'", "engine.workers=1"]
    summary = build(load(settings=settings))
    balance = summary.balance
    assert not summary.failed
    assert balance.frames == 148
    assert balance.kept + balance.rejected.total() == balance.frames
    assert balance.rejected["readable"] == 1
    store = open_store(str(tmp_path / "store"))
    frames = [row for batch in store.read("frame") for row in batch.to_pylist()]
    assert {(row["source"], row["license"]) for row in frames} == {("vasp", "CC0-1.0")}
    assert len({row["id"] for row in frames}) == len(frames) == balance.kept
    assert len(build(load(settings=settings)).unchanged) == len(summary.built)
