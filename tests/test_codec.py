import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from making import floats, ints, make
from trajmill.codec import decode, encode, encode_rejections
from trajmill.schema import FILE_SCHEMA, PUBLISHED
from trajmill.sources.base import Rejection
from trajmill.trajectory import FRAME_FIELDS
from trajmill.units import KBAR_PER_EV_PER_A3

NOT_STORED = {"task_type", "electronic_steps", "nelm", "ispin", "is_input", "deprecated", "findings", "faults", "asset"}
"""What only curation looks at; the asset is a partition column."""


@st.composite
def trajectories(draw, number):
    """A curated and annotated trajectory, any field missing that may be."""
    n = draw(st.integers(1, 5))
    symbols = draw(st.lists(st.sampled_from(["H", "O", "Fe", "Yb", "U"]), min_size=1, max_size=6))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    without_stress = random.random(n) < draw(st.sampled_from([0, 0.5, 1]))
    stress = random.normal(size=(n, 3, 3))
    stress[without_stress] = np.nan
    moments = random.normal(size=(n, len(symbols)))
    moments[random.random(n) < 0.5] = np.nan
    corrected = np.where(random.random(n) < 0.5, np.nan, random.normal(size=n))

    def maybe(value):
        return value if draw(st.booleans()) else None

    return make(
        n,
        symbols,
        task_id=f"task{number}",
        trajectory_id=f"mp-{number}-pbe",
        immutable_id=maybe("mp-1"),
        lattice=random.normal(size=(n, 3, 3)),
        energy=random.normal(size=n),
        stress=stress,
        relaxation_step=np.cumsum(random.integers(1, 4, n)).astype(np.int32),
        relaxation_number=np.sort(random.integers(0, 3, n)).astype(np.int32),
        functional=draw(st.sampled_from(["pbe", "pbesol", "scan", "r2scan"])),
        run_type=maybe("GGA+U"),
        energy_sigma0=maybe(random.normal(size=n)),
        magnetic_moments=maybe(moments),
        encut=maybe(random.normal(size=n)),
        hubbard_u=maybe({"Fe": 5.3} if draw(st.booleans()) else {}),
        potentials=maybe(("Fe_pv", "O")),
        license=maybe("BY-C"),
        material_origin=maybe(True),
        relaxation_converged=maybe(False),
        last_modified=maybe("2025-07-02T12:30:00"),
        notes=("odd",) if draw(st.booleans()) else (),
        space_group=random.integers(0, 231, n).astype(np.int32),
        energy_corrected=corrected,
        cross_compatibility=random.random(n) < 0.5,
    )


def assert_equal(a, b):
    for field in dataclasses.fields(a):
        if field.name in NOT_STORED:
            continue
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name in FRAME_FIELDS or field.name == "numbers":
            missing = x is None or (x.dtype.kind == "f" and np.isnan(x).all())
            if missing:
                assert y is None or np.isnan(y).all(), field.name
            else:
                np.testing.assert_array_equal(x, y, err_msg=field.name)
                assert x.dtype == y.dtype, field.name
        else:
            assert x == y, field.name


@given(st.data(), st.integers(1, 4))
def test_round_trip(data, n):
    before = [data.draw(trajectories(number)) for number in range(n)]
    batch = encode(before)
    batch.validate(full=True)
    assert batch.schema.equals(FILE_SCHEMA, check_metadata=True)
    after = decode(batch)
    assert len(after) == n
    for a, b in zip(before, after, strict=True):
        assert_equal(a, b)
        assert b.labelled.all()


@given(st.data())
def test_a_slice_decodes_like_the_whole(data):
    table = pa.Table.from_batches([encode([data.draw(trajectories(k)) for k in range(3)])])
    whole = decode(table)
    start = len(whole[0])
    assert_equal(decode(table.slice(start, len(whole[1])))[0], whole[1])


def test_published_columns_of_one_frame():
    t = make(
        1,
        ("O", "Ti", "Ca", "O", "O"),
        lattice=np.array([[[4.0, 0, 0], [1, 5, 0], [0, 0, 6]]]),
        last_modified="2025-07-02T12:30:00",
        space_group=ints(221),
        energy_corrected=floats(-41.5),
        cross_compatibility=np.array([True]),
        relaxation_step=ints(7),
        relaxation_number=ints(2),
    )
    row = encode([t]).to_pylist()[0]
    assert {name: row[name] for name in (c.name for c in PUBLISHED)} == {
        "elements": ["Ca", "O", "Ti"],
        "nsites": 5,
        "chemical_formula_anonymous": "A3BC",
        "chemical_formula_reduced": "CaO3Ti",
        "chemical_formula_descriptive": "Ca1 O3 Ti1",
        "nelements": 3,
        "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3,
        "lattice_vectors": [[4.0, 0, 0], [1, 5, 0], [0, 0, 6]],
        "immutable_id": "agm000000001",
        "cartesian_site_positions": t.positions[0].tolist(),
        "species": row["species"],
        "species_at_sites": ["O", "Ti", "Ca", "O", "O"],
        "last_modified": "2025-07-02T12:30:00",
        "elements_ratios": [0.2, 0.6, 0.2],
        "stress_tensor": t.stress[0].tolist(),
        "energy": -15.0,
        "energy_corrected": -41.5,
        "forces": t.forces[0].tolist(),
        "functional": "pbe",
        "cross_compatibility": True,
        "space_group_it_number": 221,
        "id": "agm000000001-pbe-7",
        "relaxation_step": 7,
        "relaxation_number": 2,
    }
    species = json.loads(row["species"])
    assert [s["name"] for s in species] == ["Ca", "O", "Ti"]
    assert species[0] == {
        "mass": None,
        "name": "Ca",
        "attached": None,
        "nattached": None,
        "concentration": [1],
        "original_name": None,
        "chemical_symbols": ["Ca"],
    }


def test_derived_columns():
    forces = np.zeros((3, 2, 3))
    forces[0, 1] = [3.0, 0, 4.0]
    forces[2, 0] = [0, -1.0, 0]
    rows = encode([make(energy=floats(-4.0, -5.0, -6.0), forces=forces), make(1)]).to_pylist()
    assert [r["max_force"] for r in rows[:3]] == [5.0, 0.0, 1.0]
    assert [r["energy_above_final"] for r in rows] == [1.0, 0.5, 0.0, 0.0]
    assert [r["is_final"] for r in rows] == [False, False, True, True]
    assert [r["rejected_by"] for r in rows] == [None] * 4


@pytest.mark.parametrize("bad", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_missing_stress_is_null_and_its_neighbours_are_not(bad):
    t = make(3)
    t.stress[list(bad)] = np.nan
    rows = encode([t]).to_pylist()
    for i, row in enumerate(rows):
        assert (row["stress_tensor"] is None) == (i in bad)
        assert i in bad or row["stress_tensor"] == t.stress[i].tolist()


def test_one_missing_component_makes_the_stress_null():
    t = make(2)
    t.stress[0, 1, 2] = np.nan
    assert encode([t])["stress_tensor"].null_count == 1


def test_inputs_have_no_labels():
    nothing = {"energy": np.full(1, np.nan), "forces": np.full((1, 2, 3), np.nan), "stress": np.full((1, 3, 3), np.nan)}
    batch = encode([make(1, is_input=np.array([True]), **nothing)])
    row = batch.to_pylist()[0]
    for name in ("energy", "forces", "stress_tensor", "max_force", "energy_above_final", "energy_corrected"):
        assert row[name] is None, name
    assert row["is_final"] is False
    assert row["cartesian_site_positions"] is not None
    (after,) = decode(batch)
    assert after.labelled.tolist() == [False]
    assert np.isnan(after.forces).all()


def test_moments_are_per_frame():
    moments = np.array([[np.nan, np.nan], [1.5, -1.5]])
    assert encode([make(2, magnetic_moments=moments), make(1)])["magnetic_moments"].to_pylist() == [
        None,
        [1.5, -1.5],
        None,
    ]


def test_unknown_and_empty_hubbard_u_differ():
    rows = encode([make(1), make(1, hubbard_u={}), make(1, hubbard_u={"V": 3.25, "Fe": 5.3})])["hubbard_u"]
    assert rows.to_pylist() == [None, "{}", '{"Fe": 5.3, "V": 3.25}']


def test_no_space_group_is_null():
    assert encode([make(2, space_group=ints(0, 225))])["space_group_it_number"].to_pylist() == [None, 225]


def test_rejections_carry_identity_and_reason_and_no_arrays():
    rejection = Rejection(
        source="mp", asset="mp/x", rejected_by="license", detail="licence BY-NC", n_frames=4, task_id="mp-1",
        trajectory_id="mp-1-pbe", immutable_id="mp-9", functional="pbe", run_type="GGA", relaxation_number=1,
        relaxation_step=3,
    )  # fmt: skip
    batch = encode_rejections([rejection])
    assert batch.schema.equals(FILE_SCHEMA, check_metadata=True)
    assert {k: v for k, v in batch.to_pylist()[0].items() if v is not None} == {
        "source": "mp", "rejected_by": "license", "rejection_detail": "licence BY-NC", "n_frames": 4,
        "task_id": "mp-1", "trajectory_id": "mp-1-pbe", "immutable_id": "mp-9", "functional": "pbe",
        "run_type": "GGA", "relaxation_number": 1, "relaxation_step": 3,
    }  # fmt: skip


def test_decode_the_published_columns_alone():
    t = make(2, relaxation_step=ints(3, 5), cross_compatibility=np.array([True, False]), last_modified="2025-01-01")
    other = dataclasses.replace(t, trajectory_id="mp-5-scan", functional="scan")
    batch = encode([t, other])
    names = [c.name for c in PUBLISHED]
    schema = pa.schema([batch.schema.field(n) for n in names], metadata={"trajmill.stress_unit": "kBar"})
    arrays = [batch[n] for n in names]
    kbar = pa.array([(-KBAR_PER_EV_PER_A3 * s).tolist() for s in (*t.stress, *t.stress)], schema.field(15).type)
    arrays[names.index("stress_tensor")] = kbar
    first, second = decode(pa.RecordBatch.from_arrays(arrays, schema=schema))
    assert [first.trajectory_id, second.trajectory_id] == ["agm000000001-pbe", "mp-5-scan"]
    np.testing.assert_allclose(first.stress, t.stress, rtol=1e-12)
    np.testing.assert_array_equal(second.forces, t.forces)
    assert first.encut is None
    assert first.hubbard_u is None
    assert first.cross_compatibility.tolist() == [True, False]


def test_decode_nothing():
    assert decode(FILE_SCHEMA.empty_table()) == []


def test_damaged_text_does_not_cost_the_ledger_its_row():
    rejection = Rejection(
        source="mp", asset="a", rejected_by="readable", detail="\ud800", n_frames=None, task_id="\udfff"
    )
    assert encode_rejections([rejection])["rejection_detail"].to_pylist() == ["?"]
