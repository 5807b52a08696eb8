"""CHGNet, whose weights come in its wheel, on real frames: a wrong unit, sign or reference of energies would show."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import trajmill
from making import DATA
from trajmill.builder import build
from trajmill.recipe import load
from trajmill.training.evaluation import evaluate
from trajmill.training.metrics import errors_of, score
from trajmill.units import KBAR_PER_EV_PER_A3

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")  # CHGNet's own

SETS = {
    "mptrj": "mptrj/mp-149.extxyz",
    "matpes": "matpes/MatPES-PBE-1record.json.gz",
    "omat24": "omat24/data.0000.aselmdb",
}

BOUNDS = {  # frames; meV/atom, meV/A and meV/A^3 that errors are below: a third above what they are
    "mp": (67, 475, 37, 3.4),
    "mptrj": (7, 134, 1, 1.2),
    "matpes": (1, 295, 330, 4.4),
    "omat24": (1, 290, 785, 15),
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    store = tmp_path_factory.mktemp("real") / "store"
    settings = [f"mp.path='{DATA / 'mp/real'}'", f"store.path='{store}'", "mp.tasks_without_material=keep"]
    assert not build(load(settings=settings)).failed
    found = {name: trajmill.open(DATA / "evalsets" / file) for name, file in SETS.items()}
    return found | {"mp": trajmill.open(store).filter('nsites < 11 AND functional = "pbe"')}


@pytest.fixture(scope="module")
def tables(datasets, tmp_path_factory):
    """What CHGNet says of each test set."""
    out = tmp_path_factory.mktemp("chgnet")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # frames are small: on a busy machine more of them only wait for each other
    try:
        evaluate(["chgnet"], datasets, out)
    finally:
        torch.set_num_threads(threads)
    return {file.name.split("--")[1]: pq.read_table(file) for file in (out / "predictions").iterdir()}


@pytest.fixture
def scored(tmp_path):
    """Score predictions after columns of DFT were replaced."""

    def run(table, **columns):
        for name, values in columns.items():
            field = table.schema.field(name)
            table = table.set_column(table.schema.names.index(name), field, pa.array(values, field.type))
        pq.write_table(table, tmp_path / "p.parquet")
        return {name: s.value for name, s in score(errors_of(tmp_path / "p.parquet")).items()}

    return run


def times(factor, column):
    """Multiply each number of a column of lists."""
    return [[factor * x for x in row] for row in column.to_pylist()]


@pytest.mark.parametrize("name", BOUNDS)
def test_errors_are_those_of_a_good_model(name, tables, scored):
    table, (n, energy, force, stress) = tables[name], BOUNDS[name]
    assert table["failure"].null_count == len(table) == n, "an answer to each frame"
    found = scored(table)
    assert found["energy_mae"] < energy
    assert found["force_mae"] < force
    assert found["stress_mae"] < stress
    if name != "mptrj":  # whose forces are all 0 by symmetry
        assert found["force_cosine_above"] > 0.9


@pytest.mark.parametrize("name", BOUNDS)
def test_a_wrong_stress_would_show(name, tables, scored):
    def error(factor):
        return scored(tables[name], stress=times(factor, tables[name]["stress"]))["stress_mae"]

    bound = BOUNDS[name][-1]
    assert error(-1) > 4 * error(1), "of the other sign"
    assert error(KBAR_PER_EV_PER_A3 / 10) > 100 * bound, "in GPa"
    assert error(KBAR_PER_EV_PER_A3) > 1000 * bound, "in kBar"
    assert error(0.1) > 1.15 * bound, "GPa taken for kBar"
    swapped = [[xx, yy, zz, xy, xz, yz] for xx, yy, zz, yz, xz, xy in tables["matpes"]["stress"].to_pylist()]
    assert scored(tables["matpes"], stress=swapped)["stress_mae"] > BOUNDS["matpes"][-1], "in VASP's order"


def test_energies_are_those_chgnet_was_trained_on(datasets, tables, scored):
    """The Materials Project's corrected ones: DFT's own are off by corrections of oxides, sulfides and +U."""
    rows = [row for batch in datasets["mp"].batches(columns=["id", "energy_corrected"]) for row in batch.to_pylist()]
    corrected = {row["id"]: row["energy_corrected"] for row in rows}
    table = tables["mp"]
    assert scored(table)["energy_mae"] > 250
    assert scored(table, energy=[corrected[i] for i in table["id"].to_pylist()])["energy_mae"] < 50


def test_forces_of_the_other_sign_would_show(tables, scored):
    for name in ("mp", "matpes", "omat24"):
        table = tables[name]
        turned = [times(-1, pa.array(frame)) for frame in table["forces"].to_pylist()]
        found, right = scored(table, forces=turned), scored(table)
        assert found["force_mae"] > 2 * right["force_mae"]
        assert found["force_cosine"] == pytest.approx(-right["force_cosine"])
