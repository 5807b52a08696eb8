"""Duplicates are marked the same way in any order, left out where that is asked for, and never deleted."""

import itertools
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import trajmill
from crystals import copied, cubic, quartz, run, rutile
from factories import make_store
from making import content
from trajmill.cli import main
from trajmill.duplicates import SCHEMA, Marks, find_duplicates
from trajmill.errors import FilterError


def planted():
    """Two of quartz in mp and one in Alexandria with more frames, rutile in all, and what has no duplicate."""
    rng = np.random.default_rng(0)
    silica = rutile(("Si", "O"), 4.2, 2.7)
    return {
        "mp": [
            run("mp-1", quartz()),
            run("mp-2", copied(quartz(), rng, supercell=[1, 1, 2], noise=0.01)),
            run("mp-3", rutile()),
            run("mp-4", cubic("rocksalt")),
        ],
        "alexandria": [
            run("agm-1", copied(quartz(), rng, scale=0.99), n_frames=5, source="alexandria"),
            run("agm-2", silica, source="alexandria"),
            run("agm-3", rutile(), functional="pbesol", source="alexandria"),
        ],
        "oqmd": [run("oqmd-1", copied(rutile(), rng, strain=0.005), source="oqmd"), run("a", silica, source="other")],
    }


MARKED = [
    ("agm-1-pbe", "agm-1-pbe", None, "alexandria", None),
    ("mp-1-pbe", "agm-1-pbe", "agm-1-pbe", "mp", "structure"),
    ("mp-2-pbe", "agm-1-pbe", "agm-1-pbe", "mp", "structure"),
    ("agm-2-pbe", "agm-2-pbe", None, "alexandria", None),
    ("a-pbe", "agm-2-pbe", "agm-2-pbe", "other", "structure"),
    ("mp-3-pbe", "mp-3-pbe", None, "mp", None),
    ("oqmd-1-pbe", "mp-3-pbe", "mp-3-pbe", "oqmd", "structure"),
]


@pytest.fixture
def stores(tmp_path):
    for name, runs in planted().items():
        make_store(tmp_path / name, runs)
    return [tmp_path / name for name in planted()]


def marked(datasets, **options):
    return [tuple(row.values()) for row in find_duplicates(datasets, **options).table.to_pylist()]


def test_duplicates_within_and_across_sources_are_marked(stores):
    before = [content(store) for store in stores]
    found = find_duplicates([trajmill.open(store) for store in stores])
    assert [tuple(row.values()) for row in found.table.to_pylist()] == MARKED
    assert found.duplicates.to_pylist() == ["a-pbe", "mp-1-pbe", "mp-2-pbe", "oqmd-1-pbe"]
    assert found.rule == {"trajectories": 9, "across_functionals": False, "angle": 5.0}
    assert found.counts() == {
        ("mp", "alexandria", "structure"): 2, ("oqmd", "mp", "structure"): 1, ("other", "alexandria", "structure"): 1,
    }  # fmt: skip
    assert [content(store) for store in stores] == before


def test_across_functionals(stores):
    more = marked([trajmill.open(store) for store in stores], across_functionals=True)
    assert [row for row in more if row not in MARKED] == [
        ("agm-3-pbesol", "mp-3-pbe", "mp-3-pbe", "alexandria", "structure")
    ]


def test_the_order_of_datasets_and_rows_does_not_matter(stores, tmp_path):
    for order in itertools.permutations(stores):
        assert marked([trajmill.open(store) for store in order]) == MARKED
    runs = [x for its in planted().values() for x in its]
    make_store(tmp_path / "one", [x.changed(asset=f"{x.source}/a") for x in reversed(runs)])
    assert marked([trajmill.open(tmp_path / "one")]) == MARKED


def test_each_is_the_same_as_what_stands_for_it(tmp_path):
    """Not only as another that is: a row of ever more strained cells falls into several groups."""
    rng = np.random.default_rng(0)
    crystals = [rutile(a=4.59 * (1 + 0.02 * i), c=2.96 * (1 - 0.03 * i)) for i in range(12)]
    runs = [run(f"mp-{i:02}", copied(c, rng), n_frames=20 - i) for i, c in enumerate(crystals)]
    make_store(tmp_path / "s", runs)
    groups = {row[1] for row in marked([trajmill.open(tmp_path / "s")])}
    assert len(groups) > 1
    assert "mp-00-pbe" in groups


def test_a_run_that_is_there_twice_is_marked_but_not_left_out(stores):
    found = find_duplicates([trajmill.open(stores[0]), trajmill.open(stores[0])])
    assert [tuple(row.values()) for row in found.table.to_pylist() if row["group"] == "mp-4-pbe"] == [
        ("mp-4-pbe", "mp-4-pbe", None, "mp", None),
        ("mp-4-pbe", "mp-4-pbe", "mp-4-pbe", "mp", "trajectory"),
    ]
    assert found.duplicates.to_pylist() == ["mp-2-pbe"]
    assert trajmill.open(stores[0]).without(found.duplicates).trajectory_ids().to_pylist() == [
        "mp-1-pbe", "mp-3-pbe", "mp-4-pbe",
    ]  # fmt: skip


def test_nothing_to_compare(tmp_path):
    make_store(tmp_path / "none", [])
    make_store(tmp_path / "one", [run("mp-1", quartz())])
    for stores in (["none"], ["one"], ["one", "none"]):
        found = find_duplicates([trajmill.open(tmp_path / name) for name in stores])
        assert (found.table.num_rows, len(found.duplicates)) == (0, 0)


def test_a_filter_narrows_what_is_compared(stores):
    only_mp = [trajmill.open(store).filter('source = "mp"') for store in stores]
    assert [row[0] for row in marked(only_mp)] == ["mp-1-pbe", "mp-2-pbe"]


def test_rows_without_a_space_group_or_a_material(tmp_path):
    runs = [run(f"mp-{i}", rutile(), space_group=None, immutable_id=None) for i in range(2)]
    make_store(tmp_path / "s", runs)
    assert [row[0] for row in marked([trajmill.open(tmp_path / "s")])] == ["mp-0-pbe", "mp-1-pbe"]


def test_it_says_how_far_it_is(stores):
    said = []
    find_duplicates([trajmill.open(s) for s in stores], report=lambda done, total: said.append((done, total)))
    assert said == [(i + 1, 14) for i in range(14)]  # seven have another of their formula and functional


def test_marks_are_kept(stores, tmp_path):
    found = find_duplicates([trajmill.open(store) for store in stores])
    found.save(tmp_path / "marks.parquet")
    again = Marks.load(tmp_path / "marks.parquet")
    assert again.table.equals(found.table)
    assert again.rule == found.rule
    assert pq.read_schema(tmp_path / "marks.parquet").names == SCHEMA.names
    with pytest.raises(FilterError, match=r"none\.parquet: no marks of trajmill dedup"):
        Marks.load(tmp_path / "none.parquet")
    pq.write_table(pa.table({"trajectory_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(FilterError, match=r"other\.parquet: no marks of trajmill dedup"):
        Marks.load(tmp_path / "other.parquet")
    with pytest.raises(FilterError, match="cannot be written"):
        found.save(tmp_path / "nowhere" / "marks.parquet")


# --- leaving them out


def test_without(stores):
    dataset = trajmill.open(stores[0])
    ids = dataset.trajectory_ids().to_pylist()
    fewer = dataset.without(["mp-2-pbe", "mp-3-pbe", None, "mp-77-pbe"])
    assert fewer.trajectory_ids().to_pylist() == ["mp-1-pbe", "mp-4-pbe"]
    assert len(fewer) == sum(len(t) for t in fewer.trajectories()) == 4
    assert [t.trajectory_id for t in fewer.trajectories()] == ["mp-1-pbe", "mp-4-pbe"]  # as they are stored
    assert dataset.without([]).trajectory_ids().to_pylist() == ids
    assert dataset.trajectory_ids().to_pylist() == ids


def test_without_goes_with_the_other_ways_of_narrowing(stores):
    dataset = trajmill.open(stores[0])

    def names(dataset):
        return dataset.trajectory_ids().to_pylist()

    assert names(dataset.without(["mp-1-pbe"]).without(["mp-2-pbe"])) == ["mp-3-pbe", "mp-4-pbe"]
    assert names(dataset.without(["mp-1-pbe"]).only(["mp-1-pbe", "mp-2-pbe"])) == ["mp-2-pbe"]
    assert names(dataset.only(["mp-1-pbe", "mp-2-pbe"]).without(["mp-1-pbe"])) == ["mp-2-pbe"]
    assert names(dataset.without(["mp-1-pbe"]).filter('elements HAS "O"')) == ["mp-2-pbe", "mp-3-pbe"]
    assert names(dataset.without(["mp-1-pbe"]).sample(9)) == ["mp-2-pbe", "mp-3-pbe", "mp-4-pbe"]
    assert len(list(dataset.without(["mp-1-pbe"]).thin(lambda energy: energy == energy[-1]).batches())) > 0


def test_the_order_of_rows_stays(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"mp-{i}" for i in rng.permutation(300)]
    make_store(tmp_path / "s", [run(name, cubic("tungsten")) for name in names])
    left = trajmill.open(tmp_path / "s").without(f"mp-{i}-pbe" for i in range(0, 300, 3))
    expected = [f"{name}-pbe" for name in names if int(name[3:]) % 3]
    assert [t.trajectory_id for t in left.trajectories()] == expected


# --- the command line


def trajmill_cli(*arguments, **options):
    command = [sys.executable, "-m", "trajmill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, **options)


def test_the_command_line_marks_and_leaves_out(stores, tmp_path):
    file = tmp_path / "marks.parquet"
    done = trajmill_cli("dedup", *stores, "--out", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 of 9 trajectories are duplicates" in done.stdout
    assert [tuple(row.values()) for row in Marks.load(file).table.to_pylist()] == MARKED
    shown = trajmill_cli("query", stores[0], "is_final = TRUE", "--without", file, "--columns", "trajectory_id")
    assert shown.stdout.startswith("2 frames"), shown.stderr
    parts = tmp_path / "split.parquet"
    made = trajmill_cli("split", stores[0], parts, "--without", file, "--part", "a=0.5", "--part", "b=0.5")
    assert made.returncode == 0, made.stderr
    assert pq.read_table(parts)["trajectory_id"].to_pylist() == ["mp-3-pbe", "mp-4-pbe"]
    written = trajmill_cli("convert", stores[0], tmp_path / "some.xyz", "--without", file)
    assert written.returncode == 0, written.stderr
    assert "4 frames" in written.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dedup", "STORE"], "Missing option '--out'"),
        (["dedup", "--out", "marks.parquet"], "Missing argument"),
        (["dedup", "nowhere", "--out", "marks.parquet"], "neither a trajmill store nor a release"),
        (["dedup", "STORE", "--out", "none/marks.parquet"], "none/marks.parquet: cannot be written"),
        (["query", "STORE", "--without", "none.parquet"], "none.parquet: no marks of trajmill dedup"),
        (["split", "STORE", "OUT", "--without", "none.parquet"], "none.parquet: no marks of trajmill dedup"),
    ],
)
def test_wrong_questions_are_one_line(stores, tmp_path, arguments, message):
    places = {"STORE": stores[0], "OUT": tmp_path / "split.parquet"}
    result = trajmill_cli(*(places.get(a, a) for a in arguments), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.glob("**/*marks*"))


def test_interrupted_it_leaves_nothing_behind(stores, tmp_path, monkeypatch, capsys):
    """Ctrl-C comes when the first structure has been read."""
    monkeypatch.setattr("trajmill.report.RowProgress.update", lambda *_: signal.raise_signal(signal.SIGINT))
    file = tmp_path / "marks.parquet"
    monkeypatch.setattr(sys, "argv", ["trajmill", "dedup", *map(str, stores), "--out", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "trajmill: stopped; run the same command again to go on\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(planted())
