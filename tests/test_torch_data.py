"""Frames as torch loads them: each once, in an order of its own, over workers and ranks, and on from any place."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import trajmill
from factories import make_store, make_trajectory
from trajmill.errors import FilterError, LoadError
from trajmill.mace_data import ToGraphs
from trajmill.thinning import every
from trajmill.torch_data import Batch, Frame, FrameStream, FrameTable, collate
from trajmill.units import to_voigt


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """97 frames of 2 to 5 atoms in 7 files."""
    folder = tmp_path_factory.mktemp("data")
    runs = [
        make_trajectory(
            f"mp-{i}", n_frames=(5, 7, 1, 8)[i % 4], symbols=("Na", "Cl", "Cl", "O", "O")[: 2 + i % 4],
            energy=-float(i), asset=f"mp/{i % 7}.jsonl",
        )
        for i in range(19)
    ]  # fmt: skip
    make_store(folder / "store", runs)
    return trajmill.open(folder / "store")


@pytest.fixture(scope="module")
def truth(dataset):
    """All frames as (numbers, positions, lattice, energy, forces, stress), by id."""
    found = {}
    for t in dataset.trajectories():
        for i in range(len(t)):
            found[f"{t.trajectory_id}-{t.relaxation_step[i]}"] = (
                t.numbers, t.positions[i], t.lattice[i], t.energy[i], t.forces[i], t.stress[i],
            )  # fmt: skip
    return found


def ids(examples):
    return [i for e in examples for i in (e.ids if isinstance(e, Batch) else [e.id])]


def test_frames_are_those_of_the_dataset(dataset, truth):
    read = list(FrameStream(dataset))
    assert sorted(ids(read)) == sorted(truth)
    for frame in read:
        for given, expected in zip(frame[1:], truth[frame.id], strict=True):
            np.testing.assert_array_equal(given.numpy(), expected)
    assert read[0].positions.dtype == torch.float64


def test_batches_are_frames_put_together(dataset):
    frames = list(FrameStream(dataset, seed=3))
    batches = list(FrameStream(dataset, batch_size=10, seed=3))
    assert [len(b.ids) for b in batches] == [10] * (len(frames) // 10) + [len(frames) % 10]
    for i, batch in enumerate(batches):
        again = collate(frames[10 * i : 10 * i + 10])
        assert batch.ids == again.ids
        assert all(torch.equal(a, b) for a, b in zip(batch[1:], again[1:], strict=True))
    moved = batches[0].to(torch.float32)
    assert (moved.positions.dtype, moved.numbers.dtype) == (torch.float32, torch.int64)


def test_an_order_depends_on_seed_and_epoch_alone(dataset):
    stream = FrameStream(dataset, seed=1)
    first, again = ids(stream), ids(stream)
    assert first == again == ids(FrameStream(dataset, seed=1))
    stored = ids(FrameStream(dataset, shuffle=False))
    assert stored == [i for batch in dataset.batches(columns=["id"]) for i in batch["id"].to_pylist()]
    stream.set_epoch(1)
    orders = [first, ids(stream), ids(FrameStream(dataset, seed=2)), stored]
    assert all(sorted(a) == sorted(b) and a != b for a, b in pairwise(orders))
    neighbours = sum(a.rpartition("-")[0] == b.rpartition("-")[0] for a, b in pairwise(first))
    assert neighbours < len(first) / 4, "frames of a trajectory do not come together"


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("window", [8, 1000])
def test_every_frame_once_over_workers_and_ranks(dataset, truth, workers, ranks, window):
    seen = []
    for rank in range(ranks):
        stream = FrameStream(dataset, rank=rank, world_size=ranks, window=window, even=False, seed=4)
        seen += ids(DataLoader(stream, batch_size=None, num_workers=workers))
    assert sorted(seen) == sorted(truth)


def test_ranks_make_the_same_number_of_steps(dataset, truth):
    seen = []
    for rank in range(3):
        stream = FrameStream(dataset, rank=rank, world_size=3, batch_size=4, window=8, drop_last=True)
        batches = list(DataLoader(stream, batch_size=None, num_workers=2))
        assert {len(b.ids) for b in batches} == {4}
        seen.append(ids(batches))
    n = len(truth) // 6 // 4 * 4 * 2
    assert [len(s) for s in seen] == [n, n, n]
    assert len({i for s in seen for i in s}) == 3 * n


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(dataset, batch_size, workers):
    def loader():
        stream = FrameStream(dataset, seed=5, batch_size=batch_size, window=20)
        stream.set_epoch(2)
        return StatefulDataLoader(stream, batch_size=None, num_workers=workers)

    whole = ids(loader())
    for stop in (1, 7, 15):
        first = loader()
        examples = iter(first)
        before = ids([next(examples) for _ in range(stop)])
        state = pickle.loads(pickle.dumps(first.state_dict()))
        del examples
        second = loader()
        second.load_state_dict(state)
        assert before + ids(second) == whole
        assert sorted(ids(second)) == sorted(whole), "and then a whole epoch"


def test_a_state_of_other_workers_is_refused(dataset):
    stream = FrameStream(dataset, rank=0, world_size=2)
    list(zip(range(3), stream, strict=False))
    state = stream.state_dict()
    assert state == {"epoch": 0, "shards": 2, "given": 3}
    other = FrameStream(dataset)
    other.load_state_dict(state)
    with pytest.raises(LoadError, match="of 2 shards"):
        next(iter(other))


def test_what_is_filtered_is_all_that_comes(dataset, truth):
    chosen = dataset.filter('elements HAS "O" AND step < 4').only([f"mp-{i}-pbe" for i in range(12)])
    expected = sorted(i for batch in chosen.batches(columns=["id"]) for i in batch["id"].to_pylist())
    assert 5 < len(expected) < len(truth)
    stream = FrameStream(chosen, window=8, even=False)
    assert sorted(ids(DataLoader(stream, batch_size=None, num_workers=2))) == expected
    assert sorted(ids(FrameStream(chosen))) == expected
    assert not ids(FrameStream(dataset.filter("nsites = 77")))


def test_releases_and_unlabelled_stress(tmp_path):
    runs = [make_trajectory("mp-1"), make_trajectory("mp-2", stress=np.full((3, 3, 3), np.nan))]
    make_store(tmp_path / "store", runs)
    dataset = trajmill.open(tmp_path / "store")
    dataset.save(tmp_path / "some.parquet")
    (batch,) = FrameStream(trajmill.open(tmp_path / "some.parquet"), batch_size=10, shuffle=False)
    assert torch.isnan(batch.stress).flatten(1).all(1).tolist() == [False] * 3 + [True] * 3
    assert not torch.isnan(batch.forces).any()


def test_a_table_in_memory_is_shared_and_gives_views(dataset, truth):
    table = FrameTable(dataset)
    assert len(table) == len(truth)
    frame = table[-1]
    for given, expected in zip(frame[1:], truth[frame.id], strict=True):
        np.testing.assert_array_equal(given.numpy(), expected)
    assert frame.positions.is_shared()
    frame.positions[0, 0] = 42.0
    assert table[len(table) - 1].positions[0, 0] == 42.0
    with pytest.raises(IndexError):
        table[len(truth)]
    loaded = DataLoader(table, batch_size=9, shuffle=True, num_workers=2, collate_fn=collate)
    assert sorted(ids(loaded)) == sorted(truth)
    assert FrameTable(dataset, dtype=torch.float32)[0].forces.dtype == torch.float32


def test_transforms_and_types(dataset):
    stream = FrameStream(dataset, transform=lambda frame: frame.energy / len(frame.numbers), dtype=torch.float32)
    first = next(iter(stream))
    assert (first.dtype, first.shape) == (torch.float32, ())
    assert isinstance(next(iter(FrameStream(dataset))), Frame)


def test_what_makes_no_sense_is_refused(dataset):
    with pytest.raises(LoadError, match="rank 2 of 2"):
        FrameStream(dataset, rank=2, world_size=2)
    with pytest.raises(LoadError, match="1 or more"):
        FrameStream(dataset, batch_size=0)
    with pytest.raises(FilterError, match="thinned"):
        FrameStream(dataset.thin(every(2)))
    with pytest.raises(LoadError, match="without frames"):
        FrameTable(dataset.filter("nsites = 77"))


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_batches_are_counted_before_they_come(dataset, even, ranks, workers, drop_last):
    for rank in range(ranks):
        stream = FrameStream(
            dataset, batch_size=7, rank=rank, world_size=ranks, even=even, drop_last=drop_last, window=20
        )
        found = list(DataLoader(stream, batch_size=None, num_workers=workers if workers > 1 else 0))
        assert len(found) == stream.n_batches(workers)


@pytest.mark.filterwarnings("ignore")  # torch's and e3nn's of each other
class TestGraphs:
    """Beside MACE's own, made frame by frame."""

    ELEMENTS = (8, 11, 17)

    def test_they_are_those_that_mace_makes(self, dataset, truth):
        from mace.data import AtomicData, Configuration
        from mace.tools import AtomicNumberTable, torch_geometric

        expected = [
            AtomicData.from_config(
                Configuration(
                    atomic_numbers=numbers, positions=positions, cell=lattice, pbc=(True, True, True),
                    properties={"energy": energy, "forces": forces, "stress": to_voigt(stress)},
                    property_weights={"energy": 1.0, "forces": 1.0, "stress": 1.0},
                ),
                z_table=AtomicNumberTable(list(self.ELEMENTS)), cutoff=5.0, heads=["Default"],
            )
            for numbers, positions, lattice, energy, forces, stress in list(truth.values())[:32]
        ]  # fmt: skip
        theirs = torch_geometric.Batch.from_data_list(expected)
        ours = next(iter(FrameStream(dataset, batch_size=32, shuffle=False, transform=ToGraphs(5.0, self.ELEMENTS))))
        assert ours.num_graphs == theirs.num_graphs == 32
        for name, value in ours.to_dict().items():
            assert value.dtype == theirs[name].dtype, name
            assert value.shape == theirs[name].shape, name
            if name not in ("edge_index", "shifts", "unit_shifts"):
                np.testing.assert_allclose(value, theirs[name], rtol=1e-6, atol=1e-6, err_msg=name)

        def edges(graphs):
            return sorted(map(tuple, torch.cat([graphs.edge_index.T, graphs.shifts.round(decimals=3)], 1).tolist()))

        assert edges(ours) == edges(theirs)

    def test_workers_make_them_and_a_label_that_is_not_known_weighs_nothing(self, tmp_path):
        known, other = make_trajectory("mp-1", n_frames=2), make_trajectory("mp-2", n_frames=2)
        other = replace(other, stress=np.full_like(other.stress, np.nan))
        make_store(tmp_path / "store", [known, other])
        stream = FrameStream(
            trajmill.open(tmp_path / "store"), batch_size=4, shuffle=False, energy="energy_corrected",
            transform=ToGraphs(5.0, sorted({*known.numbers.tolist()})),
        )  # fmt: skip
        (graphs,) = DataLoader(stream, batch_size=None, num_workers=1)
        assert graphs.stress_weight.tolist() == [1, 1, 0, 0]
        assert graphs.energy_weight.tolist() == graphs.forces_weight.tolist() == [1] * 4
        assert not graphs.stress[2:].any()
        np.testing.assert_allclose(graphs.energy[:2], known.energy_corrected, rtol=1e-6)

    def test_an_element_that_the_model_does_not_know(self, dataset):
        with pytest.raises(LoadError, match="does not know Cl"):
            next(iter(FrameStream(dataset, batch_size=4, transform=ToGraphs(5.0, (8, 11)))))
