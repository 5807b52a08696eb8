"""Every source passes the same kit, over every sample of it (Alexandria's does so in its own tests)."""

import pytest

from making import DATA
from mp_samples import write_tables
from sources.conformance import check_source
from trajmill.recipe import load
from trajmill.sources import open_sources

SAMPLES = {
    "mp-real": ("mp", "mp/real"),
    "mp-derived": ("mp", "mp/derived"),
    "mp-double": ("mp", "mp/double"),
    "mp-plain": ("mp", "mp/plain"),
    "oqmd": ("oqmd", "oqmd/qmdb__v1_6__112023.sql.gz"),
    "oqmd-6126": ("oqmd", "oqmd/real_entry_6126.sql.gz"),
}


def open_source(name, path):
    (source,) = open_sources(load(settings=[f"{name}.path='{path}'"]))
    return source


@pytest.mark.parametrize(("name", "path"), SAMPLES.values(), ids=SAMPLES)
def test_source_conforms(name, path, tmp_path):
    records = check_source(open_source(name, DATA / path), tmp_path / "work")
    assert sum(len(r) for r in records.values()) > 0


def test_delta_layout_conforms(tmp_path):
    check_source(open_source("mp", write_tables(tmp_path / "mp")), tmp_path / "work")
