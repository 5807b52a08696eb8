import json
from pathlib import Path

import pyarrow as pa
import pytest

from trajmill import schema
from trajmill.schema import FILE_SCHEMA, FRAME_SCHEMA, PUBLISHED, STORE_SCHEMA

COMMITTED = Path(__file__).parents[1] / "docs" / "schema.json"

LEMAT_TRAJ = {
    "elements": "list<string>",
    "nsites": "int32",
    "chemical_formula_anonymous": "string",
    "chemical_formula_reduced": "string",
    "chemical_formula_descriptive": "string",
    "nelements": "int8",
    "dimension_types": "list<int8>",
    "nperiodic_dimensions": "int8",
    "lattice_vectors": "list<list<double>>",
    "immutable_id": "string",
    "cartesian_site_positions": "list<list<double>>",
    "species": "string",
    "species_at_sites": "list<string>",
    "last_modified": "string",
    "elements_ratios": "list<double>",
    "stress_tensor": "list<list<double>>",
    "energy": "double",
    "energy_corrected": "double",
    "forces": "list<list<double>>",
    "functional": "string",
    "cross_compatibility": "bool",
    "space_group_it_number": "int32",
    "id": "string",
    "relaxation_step": "int32",
    "relaxation_number": "int32",
}
"""LeMat-Traj's columns in its order, types as on its dataset card."""


def test_published_columns():
    assert [(c.name, schema.type_name(c.type)) for c in PUBLISHED] == list(LEMAT_TRAJ.items())


def test_published_columns_come_first_everywhere():
    for each in (FRAME_SCHEMA, FILE_SCHEMA, STORE_SCHEMA):
        assert each.names[:25] == list(LEMAT_TRAJ)
        assert len(set(each.names)) == len(each.names)


@pytest.mark.parametrize("field", list(STORE_SCHEMA), ids=lambda f: f.name)
def test_every_field_says_unit_and_meaning(field):
    assert set(field.metadata) == {b"unit", b"description"}
    assert field.metadata[b"description"].endswith(b".")


@pytest.mark.parametrize(
    ("column", "unit"),
    {
        "energy": "eV",
        "energy_corrected": "eV",
        "energy_sigma0": "eV",
        "energy_above_final": "eV/atom",
        "forces": "eV/A",
        "max_force": "eV/A",
        "stress_tensor": "eV/A^3",
        "lattice_vectors": "A",
        "cartesian_site_positions": "A",
        "encut": "eV",
        "magnetic_moments": "mu_B",
    }.items(),
)
def test_units(column, unit):
    assert STORE_SCHEMA.field(column).metadata[b"unit"].decode() == unit


def test_file_metadata():
    for each in (FRAME_SCHEMA, FILE_SCHEMA, STORE_SCHEMA):
        assert each.metadata[b"trajmill.stress_unit"] == b"eV/A^3"
        assert each.metadata[b"trajmill.data_model"] == str(schema.DATA_MODEL_VERSION).encode()


def test_no_type_that_delta_lacks():
    for field in STORE_SCHEMA:
        assert not pa.types.is_unsigned_integer(field.type)
        assert not pa.types.is_fixed_size_list(field.type)


def test_parquet_encodings_name_real_leaves(tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "empty.parquet"
    pq.write_table(FILE_SCHEMA.empty_table(), path, **schema.parquet_options(FILE_SCHEMA))
    leaves = {pq.read_metadata(path).schema.column(i).path for i in range(pq.read_metadata(path).num_columns)}
    options = schema.parquet_options(FILE_SCHEMA)
    assert set(options["use_dictionary"]) < leaves
    assert set(options["column_encoding"]) < leaves
    assert options["column_encoding"]["energy"] == "BYTE_STREAM_SPLIT"
    assert "forces.list.element.list.element" not in options["column_encoding"]  # triples repeat as a whole


def test_committed_schema_is_current(capsys):
    schema.main()
    printed = capsys.readouterr().out
    assert COMMITTED.read_text() == printed, "python -m trajmill.schema > docs/schema.json"
    assert [c["name"] for c in json.loads(printed)] == STORE_SCHEMA.names
