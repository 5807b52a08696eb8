"""Other people's datasets: their numbers, by hand, in our units and signs; what is damaged is said in one line."""

import gzip
import json

import numpy as np
import pytest

import trajmill
from making import DATA
from trajmill.errors import FormatError, ReleaseError
from trajmill.formats import FORMATS, find

SETS = DATA / "evalsets"
KBAR = 1602.1766208
MP149 = SETS / "mptrj/mp-149.extxyz"
MATPES = SETS / "matpes/MatPES-PBE-1record.json.gz"
OMAT = SETS / "omat24/data.0000.aselmdb"


def read(path, **options):
    return list(trajmill.open(path, **options).trajectories())


def the_only(path):
    (t,) = read(path)
    assert len(t) == 1
    return t


def test_mptrj_as_extxyz():
    runs = {t.task_id: t for t in read(MP149)}
    assert {task: len(t) for task, t in runs.items()} == {"mp-655585": 1, "mp-11721": 2, "mp-149": 2, "mp-1057366": 2}
    t = runs["mp-11721"]
    assert (t.trajectory_id, t.immutable_id, t.functional) == ("mp-11721", "mp-149", "pbe")
    assert t.numbers.tolist() == [14, 14]
    assert t.energy.tolist() == [-10.82985865, -10.84103646], "the file has them the other way round"
    assert t.energy_corrected.tolist() == t.energy.tolist()
    assert t.relaxation_number.tolist() == [1, 1]
    np.testing.assert_allclose(t.stress[:, 0, 0], [-0.02547498674623027, 0.015263925201822544])
    np.testing.assert_array_equal(t.forces, 0)
    np.testing.assert_allclose(t.positions[0, 1], [1.10063739, 0.77826816, 1.90635988])


def test_a_smaller_cell_is_under_pressure():
    """Stress is negative where the crystal is compressed (ASE's sign), whatever the file's own convention."""
    volume = np.concatenate([np.abs(np.linalg.det(t.lattice)) / t.n_atoms for t in read(MP149)])
    stress = np.concatenate([t.stress.trace(axis1=1, axis2=2) / 3 for t in read(MP149)])
    assert len(volume) == 7
    order = np.argsort(volume)
    assert stress[order[0]] < 0 < stress[order[-1]]
    assert np.corrcoef(volume, stress)[0, 1] > 0.9
    # bulk modulus of silicon, 89 GPa by PBE (Csonka et al., Phys. Rev. B 79, 155107): units are right too
    modulus = np.polyfit(np.log(volume), stress, 1)[0] * 160.2176634
    assert modulus == pytest.approx(89, rel=0.15)


def test_matpes():
    t = the_only(MATPES)
    assert t.trajectory_id == "matpes-20240214_999484_73-pbe"
    assert (t.immutable_id, t.functional, t.run_type) == ("mp-999484", "pbe", "GGA")
    assert t.symbols == ["Y", "Ti"]
    assert t.energy.tolist() == [-13.19442081]
    np.testing.assert_allclose(t.forces[0, 0], [0.43578007, -0.32456562, -0.38019986])
    np.testing.assert_allclose(t.positions[0, 0], [2.792662437204551, 0.7505373806601974, 0.2026357118672113])
    expected = [
        [-5.71186022, 6.22290851, 23.6719352],
        [6.22290851, -9.34590239, 22.84178803],
        [23.6719352, 22.84178803, 13.64346365],
    ]
    np.testing.assert_allclose(t.stress[0], -np.array(expected) / KBAR)


def test_omat24():
    t = the_only(OMAT)
    assert t.trajectory_id == "agm000999967_AB12_12_spg221_1_0_rattled-1000_77w3vd"
    assert t.immutable_id == "agm000999967"
    assert t.composition == {"B": 12, "Mg": 1}
    assert t.energy.tolist() == [-59.33341297]
    assert t.energy_corrected.tolist() == [-59.33341297]
    np.testing.assert_allclose(t.forces[0, 0], [6.91655291, 1.18709092, 5.44989599])
    np.testing.assert_allclose(t.lattice[0].diagonal(), [4.895352047627077, 4.727098351107126, 5.136330238020333])
    expected = [
        [-0.34384178, 0.03515458, 0.13011421],
        [0.03515458, -0.08534069, 0.02280408],
        [0.13011421, 0.02280408, -0.0739291],
    ]
    np.testing.assert_allclose(t.stress[0], expected, atol=1e-8)


def as_mptrj(path):
    """Write the frames of mp-149 as MPtrj's JSON does, in which stress is VASP's."""
    members = {}
    for t in read(MP149):
        for i in range(len(t)):
            fractional = t.positions[i] @ np.linalg.inv(t.lattice[i])
            sites = [{"species": [{"element": "Si", "occu": 1}], "abc": list(abc)} for abc in fractional]
            members[f"{t.task_id}-{t.relaxation_number[i]}-{i}"] = {
                "structure": {"lattice": {"matrix": t.lattice[i].tolist()}, "sites": sites},
                "uncorrected_total_energy": t.energy[i],
                "corrected_total_energy": t.energy[i] - 1,
                "force": t.forces[i].tolist(),
                "stress": (-KBAR * t.stress[i]).tolist(),
                "magmom": None,
            }
    path.write_text(json.dumps({"mp-149": members, "mp-149-again": {}}))
    return members


def test_mptrj_as_json(tmp_path):
    as_mptrj(tmp_path / "MPtrj_2022.9_full.json")
    ours = {t.task_id: t for t in read(tmp_path / "MPtrj_2022.9_full.json")}
    theirs = {t.task_id: t for t in read(MP149)}
    assert set(ours) == set(theirs)
    for task, t in ours.items():
        assert (t.trajectory_id, t.immutable_id) == (f"{task}-pbe", "mp-149")
        np.testing.assert_allclose(t.stress, theirs[task].stress, atol=1e-12)
        np.testing.assert_allclose(t.positions, theirs[task].positions, atol=1e-9)
        np.testing.assert_allclose(t.energy_corrected, theirs[task].energy - 1)
        assert t.energy.tolist() == theirs[task].energy.tolist()


def test_what_mace_writes(tmp_path):
    """Labels with REF_ before them; a frame without stress; frames that belong to nothing are one each."""
    import ase.io

    frames = list(trajmill.open(MATPES).atoms()) + list(trajmill.open(OMAT).atoms())
    for atoms in frames:
        atoms.info = {"REF_energy": atoms.get_potential_energy(), "REF_stress": atoms.get_stress()}
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.calc = None
    del frames[1].info["REF_stress"]
    ase.io.write(tmp_path / "train.xyz", frames, format="extxyz")
    first, second = read(tmp_path / "train.xyz")
    assert [first.trajectory_id, second.trajectory_id] == ["train-0", "train-1"]
    expected = the_only(MATPES)
    np.testing.assert_allclose(first.stress, expected.stress, atol=1e-8)
    np.testing.assert_allclose(first.forces, expected.forces, atol=1e-8)
    assert first.energy[0] == pytest.approx(expected.energy[0])
    assert np.isnan(second.stress).all()


# --- as any other dataset


def test_all_else_works_on_them(tmp_path):
    dataset = trajmill.open(MP149)
    assert len(dataset) == 7
    assert len(dataset.filter("step = 1")) == 3
    assert len(dataset.filter('elements HAS "O"')) == 0
    assert len(dataset.only(["mp-149"])) == 2
    assert next(dataset.atoms()).get_chemical_formula() == "Si2"
    (flat,) = dataset.arrays()
    assert len(flat) == 7
    assert dataset.save(tmp_path / "some.parquet") == 7
    assert [t.task_id for t in read(tmp_path / "some.parquet")] == [t.task_id for t in read(MP149)]


def test_a_folder_of_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"data.{name}.aselmdb").write_bytes(OMAT.read_bytes())
    assert len(trajmill.open(tmp_path)) == 2


def test_each_format_says_its_conventions():
    assert [form.name for form in FORMATS] == ["mptrj", "matpes", "aselmdb", "extxyz"]
    assert all("eV" in form.conventions for form in FORMATS)
    assert find(SETS / "ORIGIN.tsv") is None


# --- damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("energy"), "record 0 cannot be read (KeyError('energy'))"),
        (lambda r: r.update(stress=[1, 2]), "record 0 cannot be read"),
        (lambda r: r.update(functional=None, structure=3), "record 0 cannot be read"),
        (lambda r: r["structure"]["sites"][0].update(species=[{"element": "Xx", "occu": 1}]), "KeyError('Xx')"),
        (lambda r: r["structure"]["sites"][0].update(species=[{"element": "Y", "occu": 0.5}]), "partly occupied"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, change, message):
    (record,) = json.loads(gzip.decompress(MATPES.read_bytes()))
    change(record)
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(json.dumps([record]).encode()))
    with pytest.raises(FormatError) as caught:
        read(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_said(tmp_path):
    whole = gzip.decompress(MATPES.read_bytes())
    cut = {
        "a.json.gz": MATPES.read_bytes()[:-40],
        "b.json.gz": gzip.compress(whole[:-100]),
        "c.xyz": MP149.read_bytes()[:1000],
    }
    for name, content in cut.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises((FormatError, ReleaseError)) as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value), name
    as_mptrj(tmp_path / "d.json")
    (tmp_path / "d.json").write_bytes((tmp_path / "d.json").read_bytes()[:-200])
    with pytest.raises(FormatError, match="damaged"):
        read(tmp_path / "d.json")


def test_frames_of_a_trajectory_with_other_atoms_are_said(tmp_path):
    text = MP149.read_text().splitlines()
    text[6] = text[6].replace("Si", "C ")
    (tmp_path / "x.extxyz").write_text("\n".join(text) + "\n")
    with pytest.raises(FormatError, match="frames of mp-11721 have different atoms"):
        read(tmp_path / "x.extxyz")
