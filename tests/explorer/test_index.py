"""The index says of each trajectory what the dataset says, and finds what is asked for and nothing else."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import make_store, make_trajectory
from servers.explorer import make_samples
from servers.postgres import schema
from trajmill.dataset import Dataset
from trajmill.explorer import ExploreError
from trajmill.explorer.index import Index
from trajmill.explorer.indexing import prepare
from trajmill.explorer.query import PAGE, SORTS, SYSTEMS, QueryError, read
from trajmill.explorer.reading import Reader, document, trajectory_of
from trajmill.schema import PUBLISHED
from trajmill.stores import open_store


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("samples") / "store")


@pytest.fixture(scope="module")
def trajectories(store):
    return list(Dataset(store).trajectories())


@pytest.fixture(scope="module")
def index(store):
    opened = Index(prepare(str(store), Dataset(store)).index)
    yield opened
    opened.close()


def everything(index, **parameters):
    """All pages of what is asked for."""
    rows = []
    while True:
        found = index.page(read({**parameters, "page": str(len(rows) // PAGE)}))
        rows += found["rows"]
        if len(rows) >= found["total"] or not found["rows"]:
            assert len(rows) == found["total"]
            return rows


def ids(index, **parameters):
    return {row["trajectory_id"] for row in everything(index, **parameters)}


class TestWhatItSays:
    def test_all_trajectories_in_the_order_of_the_dataset(self, index, trajectories):
        assert [row["trajectory_id"] for row in everything(index)] == [t.trajectory_id for t in trajectories]

    def test_numbers_are_those_of_the_frames(self, index, trajectories):
        rows = {row["trajectory_id"]: row for row in everything(index)}
        for t in trajectories:
            row = rows[t.trajectory_id]
            assert row["n_frames"] == len(t)
            assert row["nsites"] == t.n_atoms
            assert row["energy_per_atom"] == pytest.approx(t.energy[-1] / t.n_atoms)
            assert row["energy_drop"] == pytest.approx((t.energy[0] - t.energy[-1]) / t.n_atoms)
            assert row["max_force"] == pytest.approx(np.linalg.norm(t.forces[-1], axis=1).max())
            assert row["space_group_it_number"] == t.space_group[-1]
            assert (row["source"], row["functional"], row["run_type"]) == (t.source, t.functional, t.run_type)

    def test_summary(self, index, trajectories):
        found = index.summary()
        assert found["trajectories"] == len(trajectories)
        assert found["frames"] == sum(map(len, trajectories))
        assert dict(found["sources"]) == {"alexandria": 60, "mp": 4, "oqmd": 1}
        assert sum(n for _, n in found["space_groups"]) == len(trajectories)

    def test_elements_are_counted_among_what_was_found(self, index):
        found = index.page(read({"include": "Fe"}))
        assert found["elements"] == {"Fe": 2, "O": 2}
        assert index.page(read({}))["elements"]["Na"] == 1


WAYS = {
    "include": lambda t, v: set(v.split(",")) <= set(t.symbols),
    "exclude": lambda t, v: not set(v.split(",")) & set(t.symbols),
    "source": lambda t, v: t.source == v,
    "functional": lambda t, v: t.functional == v,
    "system": lambda t, v: SYSTEMS[v][0] <= t.space_group[-1] <= SYSTEMS[v][1],
    "space_group": lambda t, v: t.space_group[-1] == int(v),
    "min_sites": lambda t, v: t.n_atoms >= int(v),
    "max_sites": lambda t, v: t.n_atoms <= int(v),
}
some_elements = st.lists(st.sampled_from(["Al", "O", "Fe", "Na", "Cl", "U"]), min_size=1, max_size=2).map(",".join)
VALUES = {
    "include": some_elements,
    "exclude": some_elements,
    "source": st.sampled_from(["mp", "oqmd", "alexandria", "nowhere", "x' OR 1=1 --"]),
    "functional": st.sampled_from(["pbe", "scan", "r2scan"]),
    "system": st.sampled_from([*SYSTEMS]),
    "space_group": st.integers(1, 230).map(str),
    "min_sites": st.integers(0, 9).map(str),
    "max_sites": st.integers(0, 9).map(str),
}


class TestWhatItFinds:
    @given(st.fixed_dictionaries({}, optional=VALUES))
    def test_what_meets_all_conditions_and_nothing_else(self, index, trajectories, asked):
        expected = {t.trajectory_id for t in trajectories if all(WAYS[k](t, v) for k, v in asked.items())}
        assert ids(index, **asked) == expected

    def test_no_other_elements(self, index, trajectories):
        expected = {t.trajectory_id for t in trajectories if {*t.symbols} == {"Al", "O"}}
        assert ids(index, include="Al,O", only="1") == expected
        assert ids(index, include="O", only="1") == set() != ids(index, include="O")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('elements HAS "Fe" AND n_frames = 3', {"mp-2-r2scan", "mp-3-pbe"}),
            ('chemical_system = "O-Fe" AND relaxation_converged = TRUE', {"mp-3-pbe"}),
            ("space_group = 225", {"mp-1-pbe"}),
            ('NOT source = "alexandria" AND energy_per_atom < -7', {"mp-4-pbesol"}),
            ('source = "oqmd" AND step = 6', {"oqmd-5-pbe"}),
        ],
    )
    def test_filters(self, index, text, expected):
        assert ids(index, filter=text) == expected

    @pytest.mark.parametrize("name", [*SORTS])
    @pytest.mark.parametrize("descending", [False, True])
    def test_pages_of_an_order_hold_each_trajectory_once(self, index, trajectories, name, descending):
        rows = everything(index, sort=name, **({"descending": "1"} if descending else {}))
        found = [row["trajectory_id"] for row in rows]
        assert sorted(found) == sorted(t.trajectory_id for t in trajectories)
        key = SORTS[name]
        if key in rows[0]:
            known = [row[key] for row in rows if row[key] is not None]
            assert known == sorted(known, reverse=descending)
            assert all(row[key] is None for row in rows[len(known) :])

    @pytest.mark.parametrize(
        ("parameters", "name", "reason"),
        [
            ({"sql": "SELECT 1"}, "sql", "nothing is called sql"),
            ({"include": "Fe,Xx"}, "include", "'Xx' is no element"),
            ({"sort": "nsites; DROP TABLE trajectories"}, "sort", "one of stored, formula"),
            ({"system": "square"}, "system", "one of triclinic"),
            ({"page": "-1"}, "page", "a whole number, 0 or more"),
            ({"page": "99999999999"}, "page", "a whole number, 0 or more"),
            ({"min_sites": "1e3"}, "min_sites", "a whole number, 0 or more"),
            ({"max_sites": "²"}, "max_sites", "a whole number, 0 or more"),
            ({"filter": "nsites <"}, "filter", "cannot be read at its end"),
            ({"filter": "nsitez < 3"}, "filter", "did you mean nsites?"),
            ({"filter": "1 = 1; DROP TABLE trajectories"}, "filter", "cannot be read"),
            ({"filter": "nsites < (SELECT 3)"}, "filter", "cannot be read"),
            ({"filter": "(" * 900 + "nsites < 3" + ")" * 900}, "filter", "too many brackets"),
            ({"filter": "nsites < 3 AND " * 300}, "filter", "longer than 2000 characters"),
        ],
    )
    def test_what_makes_no_sense_is_said(self, parameters, name, reason):
        with pytest.raises(QueryError, match=reason.replace("?", r"\?")) as error:
            read(parameters)
        assert error.value.name == name

    def test_a_text_never_ends_early(self, index):
        assert ids(index, filter='''source = "mp' OR 'a' = 'a"''') == set()

    def test_nothing_outside_the_index_can_be_read(self, index, tmp_path):
        import duckdb

        (tmp_path / "secret.csv").write_text("a\n1\n")
        for sql in (f"SELECT * FROM read_csv('{tmp_path}/secret.csv')", "SET enable_external_access = true"):
            with pytest.raises(duckdb.Error):
                index._rows(sql)
        with pytest.raises(duckdb.Error):
            index._rows("DROP TABLE trajectories")


def rows_of(store, columns=None):
    """All rows, with the unit of stress in their metadata."""
    dataset = Dataset(store)
    return pa.Table.from_batches(dataset.batches(columns=columns)).replace_schema_metadata(dataset.schema.metadata)


def read_back(source, trajectory_id):
    index = Index(source.index)
    try:
        return trajectory_of(Reader(source.dataset).rows(trajectory_id, tuple(index.spans(trajectory_id))))
    finally:
        index.close()


def same(one, other):
    assert one.trajectory_id == other.trajectory_id
    for name in ("energy", "positions", "forces", "lattice", "relaxation_step"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.stress, other.stress, rtol=1e-12)


class TestAnyDataset:
    def test_a_trajectory_over_row_groups_and_files(self, store, trajectories, tmp_path):
        rows = rows_of(store)
        cut = len(rows) // 2 + 1
        for i, part in enumerate((rows.slice(0, cut), rows.slice(cut))):
            pq.write_table(part, tmp_path / f"{i}.parquet", row_group_size=5)
        source = prepare(str(tmp_path), Dataset(tmp_path))
        for t in trajectories:
            same(read_back(source, t.trajectory_id), t)
        index = Index(source.index)
        assert [r["trajectory_id"] for r in everything(index)] == [t.trajectory_id for t in trajectories]
        assert {r["trajectory_id"]: r["n_frames"] for r in everything(index)} == {
            t.trajectory_id: len(t) for t in trajectories
        }
        assert max(len(index.spans(t.trajectory_id)) for t in trajectories) > 1
        index.close()

    def test_the_published_columns_in_kbar(self, store, trajectories, tmp_path):
        rows = rows_of(store, [c.name for c in PUBLISHED])
        stress = [
            None if s is None else (-1602.1766208 * np.array(s)).tolist() for s in rows["stress_tensor"].to_pylist()
        ]
        at = rows.schema.names.index("stress_tensor")
        rows = rows.set_column(at, rows.schema.field(at), pa.array(stress, rows.schema.field(at).type))
        pq.write_table(rows.replace_schema_metadata({"trajmill.stress_unit": "kBar"}), tmp_path / "a.parquet")
        source = prepare(str(tmp_path), Dataset(tmp_path))
        for t in trajectories:
            same(read_back(source, t.trajectory_id), t)
        index = Index(source.index)
        row = next(r for r in everything(index) if r["trajectory_id"] == "mp-1-pbe")
        assert row["source"] is None
        (t,) = (t for t in trajectories if t.trajectory_id == "mp-1-pbe")
        assert row["max_force"] == pytest.approx(np.linalg.norm(t.forces[-1], axis=1).max())
        index.close()

    def test_what_lies_in_no_parquet_files_is_copied(self, store, trajectories, tmp_path):
        from trajmill.converting import convert

        file = tmp_path / "a.extxyz"
        convert(Dataset(store, source="mp"), file, "extxyz", prefix="")
        source = prepare(str(file), Dataset(file))
        found = read_back(source, "mp-2-r2scan")
        expected = next(t for t in trajectories if t.trajectory_id == "mp-2-r2scan")
        np.testing.assert_allclose(found.energy, expected.energy)
        np.testing.assert_allclose(found.forces, expected.forces, atol=1e-8)
        again = prepare(str(file), Dataset(file), report=pytest.fail)
        assert again.index == source.index

    def test_a_database_is_copied_too(self, store, trajectories):
        from trajmill.copying import copy

        with schema() as address:
            copy(open_store(store), open_store(address, create=True))
            source = prepare(address, Dataset(address))
            for t in trajectories[:3]:
                same(read_back(source, t.trajectory_id), t)
            assert prepare(address, Dataset(address), report=pytest.fail).index == source.index

    def test_only_what_the_address_asks_for(self, store, trajectories):
        address = f"{store}?functional=scan"
        source = prepare(address, Dataset(address))
        index = Index(source.index)
        expected = {t.trajectory_id: t for t in trajectories if t.functional == "scan"}
        assert ids(index) == set(expected)
        index.close()
        for name, t in expected.items():
            same(read_back(source, name), t)

    def test_nothing_at_all(self, tmp_path, store):
        rows = rows_of(store).slice(0, 0)
        pq.write_table(rows, tmp_path / "a.parquet")
        index = Index(prepare(str(tmp_path), Dataset(tmp_path)).index)
        assert index.page(read({})) == {"total": 0, "page": 0, "page_size": PAGE, "rows": [], "elements": {}}
        assert index.summary()["frames"] == 0
        index.close()


class TestTheCache:
    def test_made_once_and_again_when_the_dataset_changed(self, tmp_path):
        store = tmp_path / "store"
        make_store(store, [make_trajectory("mp-1")])
        told = []
        first = prepare(str(store), Dataset(store), lambda done, total: told.append((done, total)))
        assert told == [(1, 1)]
        assert prepare(str(store), Dataset(store), report=pytest.fail).index == first.index
        make_store(tmp_path / "more", [make_trajectory("mp-1"), make_trajectory("mp-9", asset="mp/tasks/b.jsonl.gz")])
        store.rename(tmp_path / "old")
        (tmp_path / "more").rename(store)
        second = prepare(str(store), Dataset(store))
        assert second.index != first.index
        assert not first.index.exists(), "what nobody can use any more is removed"
        index = Index(second.index)
        assert ids(index) == {"mp-1-pbe", "mp-9-pbe"}
        index.close()

    def test_stopped_it_leaves_nothing_behind(self, store, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

        def stop(*_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(str(store), Dataset(store), stop)
        assert list((tmp_path / "trajmill/explorer").iterdir()) == []
        assert prepare(str(store), Dataset(store)).index.exists()

    def test_only_its_owner_may_look_into_it(self, store, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        folder = prepare(str(store), Dataset(store)).index.parent
        assert folder.stat().st_mode & 0o077 == 0

    def test_a_cache_that_cannot_be_written(self, store, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        with pytest.raises(ExploreError, match=r"the index cannot be written .*; set XDG_CACHE_HOME"):
            prepare(str(store), Dataset(store))

    def test_a_dataset_that_changed_meanwhile_is_no_other_trajectory(self, tmp_path):
        rows = {}
        for name in ("mp-1", "mp-2"):
            make_store(tmp_path / name, [make_trajectory(name)])
            rows[name] = rows_of(tmp_path / name)
        file = tmp_path / "a.parquet"
        pq.write_table(rows["mp-1"], file)
        source = prepare(str(file), Dataset(file))
        pq.write_table(rows["mp-2"], file)
        with pytest.raises(ExploreError, match="changed since this page was started"):
            read_back(source, "mp-1-pbe")


def test_a_document_has_no_number_that_is_none(trajectories):
    t = next(t for t in trajectories if t.source == "oqmd")
    import json

    import msgspec

    text = msgspec.json.encode(document(t)).decode()
    assert "NaN" not in text
    assert json.loads(text)["frames"]["pressure"] == [None] * 4
