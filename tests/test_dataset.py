from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trajmill
from factories import make_store, make_trajectory
from trajmill.errors import FilterError, MissingExtraError, ReleaseError, require
from trajmill.recipe import load
from trajmill.releases.hugging_face import release
from trajmill.stores import open_store
from trajmill.stores.delta import DeltaStore
from trajmill.thinning import energy_steps, every


@pytest.fixture
def runs():
    return [
        make_trajectory(f"mp-{i}", n_frames=n, immutable_id=f"mp-{i}") for i, n in enumerate((1, 5, 2, 30), start=1)
    ]


@pytest.fixture
def store(tmp_path, runs):
    return make_store(tmp_path / "store", [*runs, make_trajectory("mp-9", functional="scan", energy_corrected=None)])


def same(a, b):
    assert a.trajectory_id == b.trajectory_id
    for name in ("numbers", "lattice", "positions", "energy", "forces", "stress", "relaxation_step"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_store_gives_its_trajectories_back(store, tmp_path, runs):
    dataset = trajmill.open(tmp_path / "store", functional="pbe")
    assert len(dataset) == 38
    for read, written in zip(dataset.trajectories(), runs, strict=True):
        same(read, written)
    assert len(trajmill.open(tmp_path / "store")) == 41


@pytest.mark.parametrize("rows_per_file", [1, 3, 100])
def test_trajectories_are_whole_across_shards(store, tmp_path, runs, rows_per_file):
    release(store, tmp_path / "out", load(settings=[f"release.rows_per_file={rows_per_file}"]))
    dataset = trajmill.open(tmp_path / "out", "compatible_pbe")
    assert [len(t) for t in dataset.trajectories()] == [1, 5, 2, 30]
    for folder in (tmp_path / "out/compatible_pbe", tmp_path / "out"):
        assert len(trajmill.open(folder, functional="pbe")) == 38
    assert trajmill.open(tmp_path / "out").manifest["frames"] == {"compatible_pbe": 38, "compatible_scan": 3}


def test_atoms(store, tmp_path, runs):
    frames = list(trajmill.open(tmp_path / "store", functional="pbe").atoms())
    assert len(frames) == 38
    atoms, run = frames[1], runs[1]
    assert atoms.get_chemical_formula() == "ClNa"
    assert atoms.info["id"] == "mp-2-pbe-0"
    assert atoms.get_potential_energy() == run.energy[0]
    np.testing.assert_array_equal(atoms.get_forces(), run.forces[0])
    np.testing.assert_allclose(atoms.get_stress(voigt=False), run.stress[0])
    np.testing.assert_allclose(atoms.cell[:], run.lattice[0])
    assert all(atoms.pbc)


def test_atoms_without_stress_have_none(tmp_path):
    make_store(tmp_path / "store", [make_trajectory(stress=np.full((3, 3, 3), np.nan))])
    atoms = next(trajmill.open(tmp_path / "store").atoms())
    assert "stress" not in atoms.calc.results


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (False, ["nothing"], "neither a trajmill store nor a release"),
        (True, ["store", "compatible_pbe"], "a store has no configurations"),
        (
            True,
            ["out", "compatible_xyz"],
            "no configuration compatible_xyz; there are: compatible_pbe, compatible_scan",
        ),
    ],
)
def test_says_what_can_be_opened(tmp_path, runs, make, arguments, message):
    if make:
        made = make_store(tmp_path / "store", [*runs, make_trajectory("mp-9", functional="scan")])
        release(made, tmp_path / "out", load())
    with pytest.raises(ReleaseError, match=message):
        trajmill.open(tmp_path / arguments[0], *arguments[1:])


def test_a_missing_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"no_such_package is not installed: pip install 'trajmill\[ase\]'"):
        require("no_such_package.part", extra="ase")


# --- narrowing


@pytest.fixture
def dataset(store, tmp_path):
    return trajmill.open(tmp_path / "store")


def ids(dataset):
    return [i for batch in dataset.batches(columns=["id"]) for i in batch["id"].to_pylist()]


def test_filter(dataset, store, tmp_path):
    assert ids(dataset.filter('functional = "scan" AND step > 0')) == ["mp-9-scan-1", "mp-9-scan-2"]
    narrow = dataset.filter("nsites = 2").filter("step >= 28")
    assert ids(narrow) == ["mp-4-pbe-28", "mp-4-pbe-29"]
    assert (len(narrow), len(dataset)) == (2, 41), "the wider one stays as it is"
    release(store, tmp_path / "out", load())
    assert ids(trajmill.open(tmp_path / "out").filter("step >= 28")) == ids(narrow)
    with pytest.raises(FilterError, match="did you mean nsites"):
        dataset.filter("nsite = 2")


def test_filtered_rows_come_in_stored_order_with_types_and_units(dataset):
    (batch,) = dataset.filter("step >= 0").batches()
    assert batch.schema.equals(dataset.schema, check_metadata=True)
    assert batch.equals(pa.Table.from_batches(dataset.batches()).combine_chunks().to_batches()[0])


def test_columns(dataset):
    (batch,) = dataset.filter("step = 29").batches(columns=["energy", "id", "asset"])
    assert batch.to_pylist() == [{"energy": -6.0, "id": "mp-4-pbe-29", "asset": "mp/tasks/a.jsonl.gz"}]
    with pytest.raises(FilterError, match="no column energie; there are elements, "):
        next(dataset.batches(columns=["energie"]))


def test_only(dataset):
    assert len(dataset.only(["mp-3-pbe", "mp-9-scan", "nobody"])) == 5
    assert len(dataset.only(["mp-3-pbe"]).only(["mp-9-scan"])) == 0
    assert ids(dataset.only(["mp-3-pbe"])) == ["mp-3-pbe-0", "mp-3-pbe-1"]


def test_whatever_is_chosen_comes_in_stored_order(tmp_path):
    """DuckDB with several threads keeps the order through a filter, but not through a join."""
    runs = [make_trajectory(f"mp-{i}", n_frames=2, asset=f"mp/{i % 8}") for i in range(240)]
    make_store(tmp_path / "store", runs)
    dataset = trajmill.open(tmp_path / "store")
    stored = ids(dataset)
    for seed in range(20):
        chosen = [f"mp-{i}-pbe" for i in np.random.default_rng(seed).permutation(240)[: 1 + 12 * seed]]
        expected = [i for i in stored if i.rpartition("-")[0] in set(chosen)]
        assert ids(dataset.only(chosen)) == expected
        assert ids(dataset.only(chosen).filter("step > 0")) == [i for i in expected if i.endswith("-1")]


def test_a_sample_is_of_whole_trajectories_and_does_not_depend_on_what_else_there_is(dataset):
    drawn = dataset.sample(2, seed=1)
    chosen = drawn.trajectory_ids().to_pylist()
    assert len(chosen) == 2
    assert [len(t) for t in drawn.trajectories()] == [len(t) for t in dataset.only(chosen).trajectories()]
    assert dataset.sample(2, seed=1).trajectory_ids().to_pylist() == chosen
    assert {tuple(dataset.sample(2, seed=s).trajectory_ids().to_pylist()) for s in range(20)} != {tuple(chosen)}
    assert dataset.only([*chosen, "mp-9-scan"]).sample(2, seed=1).trajectory_ids().to_pylist() == chosen
    assert len(dataset.sample(99)) == 41
    assert len(dataset.sample(0)) == 0
    with pytest.raises(FilterError):
        dataset.sample(-1)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_thin(store, dataset, tmp_path, rows):
    release(store, tmp_path / "out", load(settings=[f"release.rows_per_file={rows}"]))
    for opened in (dataset, trajmill.open(tmp_path / "out")):
        thinned = opened.thin(every(10))
        expected = ["mp-1-pbe-0", "mp-2-pbe-4", "mp-3-pbe-1", "mp-4-pbe-9", "mp-4-pbe-19", "mp-4-pbe-29", "mp-9-scan-2"]
        assert ids(thinned) == expected
        assert len(thinned) == 7
        assert [len(t) for t in thinned.trajectories()] == [1, 1, 1, 3, 1]
        with pytest.raises(FilterError, match="thin last"):
            thinned.filter("step = 0")


def test_thinning_looks_at_energies_per_atom(dataset):
    """Energies fall by 0.01 eV a step in a cell of two atoms."""
    assert ids(dataset.only(["mp-4-pbe"]).thin(energy_steps(0.049))) == ["mp-4-pbe-9", "mp-4-pbe-19", "mp-4-pbe-29"]


def test_save(dataset, tmp_path):
    assert dataset.filter('functional = "scan"').save(tmp_path / "some.parquet") == 3
    again = trajmill.open(tmp_path / "some.parquet")
    assert ids(again) == ["mp-9-scan-0", "mp-9-scan-1", "mp-9-scan-2"]
    same(next(again.trajectories()), next(dataset.filter('functional = "scan"').trajectories()))
    with pytest.raises(ReleaseError, match="cannot be written"):
        dataset.save(tmp_path / "none" / "some.parquet")
    with pytest.raises(ReleaseError, match="a file has no configurations"):
        trajmill.open(tmp_path / "some.parquet", "compatible_pbe")


# --- forms


def test_arrays_are_what_the_trajectories_are(dataset):
    frames = list(dataset.arrays())
    assert sum(map(len, frames)) == 41
    i = 0
    flat = frames[0]
    for t in dataset.trajectories():
        for k in range(len(t)):
            atoms = slice(flat.offsets[i], flat.offsets[i + 1])
            np.testing.assert_array_equal(flat.numbers[atoms], t.numbers)
            np.testing.assert_array_equal(flat.positions[atoms], t.positions[k])
            np.testing.assert_array_equal(flat.forces[atoms], t.forces[k])
            np.testing.assert_array_equal(flat.lattice[i], t.lattice[k])
            np.testing.assert_array_equal(flat.stress[i], t.stress[k])
            assert (flat.energy[i], flat.ids[i].as_py()) == (t.energy[k], f"{t.trajectory_id}-{k}")
            i += 1


def test_arrays_keep_frames_without_forces_apart(tmp_path):
    """A row without forces takes as many atoms as it has: those after it would be taken for its own."""
    inputs = make_trajectory("oqmd-1", n_frames=1, energy=np.nan, energy_corrected=None,
                             forces=np.full((1, 2, 3), np.nan), is_input=np.array([True]))  # fmt: skip
    runs = [make_trajectory("mp-1"), inputs, make_trajectory("mp-2")]
    make_store(tmp_path / "store", runs)
    (flat,) = trajmill.open(tmp_path / "store").arrays()
    assert len(flat.forces) == len(flat.positions) == flat.offsets[-1] == 14
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(flat.forces).any(axis=1)), [6, 7])
    np.testing.assert_array_equal(flat.forces[8:], runs[2].forces.reshape(-1, 3))
    assert np.flatnonzero(np.isnan(flat.energy)).tolist() == [3]


def test_arrays_without_stress_and_in_kbar(tmp_path):
    runs = [make_trajectory("mp-1", stress=np.full((3, 3, 3), np.nan)), make_trajectory("mp-2")]
    make_store(tmp_path / "store", runs)
    (flat,) = trajmill.open(tmp_path / "store").arrays()
    assert np.isnan(flat.stress[:3]).all()
    np.testing.assert_array_equal(flat.stress[3:], runs[1].stress)
    release(DeltaStore(tmp_path / "store"), tmp_path / "out", load(settings=["release.stress='kbar'"]))
    (flat,) = trajmill.open(tmp_path / "out").arrays()
    assert np.isnan(flat.stress[:3]).all()
    np.testing.assert_allclose(flat.stress[3:], runs[1].stress, rtol=1e-12)


def test_a_file_that_states_no_unit_of_stress_is_refused(dataset, tmp_path):
    dataset.save(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "b.parquet")
    with pytest.raises(ReleaseError, match="does not say in which unit stress is; say stress='kBar'"):
        trajmill.open(tmp_path / "b.parquet")
    with pytest.raises(ReleaseError, match=r"no unit of stress: GPa; say kBar or eV/A\^3"):
        trajmill.open(tmp_path / "b.parquet", stress="GPa")
    ours = next(dataset.trajectories()).stress
    np.testing.assert_array_equal(
        next(trajmill.open(tmp_path / "b.parquet", stress="eV/A^3").trajectories()).stress, ours
    )
    kbar = next(trajmill.open(tmp_path / "b.parquet", stress="kBar").trajectories()).stress
    np.testing.assert_allclose(kbar, -ours / 1602.1766208)


def test_the_published_columns_alone(store, tmp_path):
    """No trajectory_id, no source, no largest force: what is missing comes from what there is."""
    release(store, tmp_path / "out", load(settings=["release.format='lemat-traj'"]))
    published = trajmill.open(tmp_path / "out")
    assert "trajectory_id" not in published.schema.names
    assert published.trajectory_ids().to_pylist() == ["mp-1-pbe", "mp-2-pbe", "mp-3-pbe", "mp-4-pbe", "mp-9-scan"]
    assert len(published.only(["mp-2-pbe"])) == 5
    assert ids(published.thin(every(100))) == ["mp-1-pbe-0", "mp-2-pbe-4", "mp-3-pbe-1", "mp-4-pbe-29", "mp-9-scan-2"]
    assert len(published.filter("max_force < 1000")) == 41
    with pytest.raises(FilterError, match="nothing is called source"):
        trajmill.open(tmp_path / "out", source="mp")


def test_structures(dataset):
    structure = next(dataset.structures())
    t = next(dataset.trajectories())
    assert structure.composition.reduced_formula == "NaCl"
    assert structure.properties["energy"] == t.energy[0]
    np.testing.assert_allclose(structure.cart_coords, t.positions[0])
    np.testing.assert_array_equal(structure.site_properties["forces"], t.forces[0])
    np.testing.assert_array_equal(structure.properties["stress"], t.stress[0])
    assert structure.properties["id"] == "mp-1-pbe-0"


def test_options_may_follow_an_address(tmp_path):
    make_store(
        tmp_path / "store", [make_trajectory("mp-1"), make_trajectory("mp-2", functional="scan", energy_corrected=None)]
    )
    release(open_store(tmp_path / "store"), tmp_path / "out", load())
    asked = trajmill.open(f"{tmp_path}/out?configuration=compatible_scan&split=train")
    assert asked.trajectory_ids().to_pylist() == ["mp-2-scan"]
    assert len(trajmill.open(f"{tmp_path}/store?functional=pbe&source=mp")) == 3
    shutil.copytree(tmp_path / "out", tmp_path / "what?split=test")
    assert len(trajmill.open(tmp_path / "what?split=test")) == 6, "a folder that is called so"
    with pytest.raises(ReleaseError, match="no option spilt; there are configuration, split"):
        trajmill.open(f"{tmp_path}/out?spilt=train")
    with pytest.raises(ReleaseError, match="no option anything"):
        trajmill.open(f"{tmp_path}/out?anything")


def test_a_digest_tells_frames_and_energies_whatever_their_order(tmp_path):
    runs = [make_trajectory(f"mp-{i}", n_frames=3) for i in range(4)]
    for name, those in {"a": runs, "b": runs[::-1], "fewer": runs[1:]}.items():
        make_store(tmp_path / name, those)
    other = [replace(runs[0], energy=runs[0].energy + 1e-9), *runs[1:]]
    make_store(tmp_path / "other", other)
    digests = {name: trajmill.open(tmp_path / name).digest() for name in ("a", "b", "fewer", "other")}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3
    assert trajmill.open(tmp_path / "a").digest("energy_corrected") == trajmill.open(tmp_path / "other").digest(
        "energy_corrected"
    )
