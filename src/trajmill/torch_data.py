"""Datasets as PyTorch reads them: streamed in a shuffled order over workers and ranks, or held in memory.

    from torch.utils.data import DataLoader
    stream = FrameStream(trajmill.open("release", "compatible_pbe"), batch_size=128, seed=0)
    for epoch in range(100):
        stream.set_epoch(epoch)
        for batch in DataLoader(stream, batch_size=None, num_workers=4):
            ...

Extra `torch`. Numbers are in trajmill's units: A, eV, eV/A, eV/A^3 positive under tension; unknown ones are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trajmill.dataset import LABELS, Dataset, FlatFrames, joined, to_flat
from trajmill.errors import LoadError
from trajmill.pieces import Pieces
from trajmill.trajectory import FloatArray

WINDOW = 30_000
"""Frames that are shuffled together, about 100 MB."""


class Frame(NamedTuple):
    """A frame.

    Attributes:
        id: of the frame.
        numbers: (n_atoms,) int64, atomic numbers.
        positions: (n_atoms, 3) A.
        lattice: (3, 3) A, vectors as rows.
        energy: () eV.
        forces: (n_atoms, 3) eV/A.
        stress: (3, 3) eV/A^3.
    """

    id: str
    numbers: Tensor
    positions: Tensor
    lattice: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor


class Batch(NamedTuple):
    """Frames one after the other.

    Attributes:
        ids: of the frames.
        frame: (n_atoms,) int64, of which frame each atom is.
        numbers: (n_atoms,) int64, atomic numbers.
        positions: (n_atoms, 3) A.
        lattice: (n_frames, 3, 3) A.
        energy: (n_frames,) eV.
        forces: (n_atoms, 3) eV/A.
        stress: (n_frames, 3, 3) eV/A^3.
    """

    ids: list[str]
    frame: Tensor
    numbers: Tensor
    positions: Tensor
    lattice: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Move all tensors, as `Tensor.to`; numbers of atoms and frames keep their type."""
        whole = [value.to(*args, **kwargs) for value in self[3:]]
        counted = [value.to(whole[0].device) for value in self[1:3]]
        return Batch(self.ids, *counted, *whole)

    def pin_memory(self) -> Batch:
        """Pin all tensors, as a DataLoader with `pin_memory` asks."""
        return Batch(self.ids, *(value.pin_memory() for value in self[1:]))


def collate(frames: Sequence[Frame]) -> Batch:
    """Put frames together: the `collate_fn` of a DataLoader over single frames."""
    sizes = torch.tensor([len(frame.numbers) for frame in frames])
    return Batch(
        [frame.id for frame in frames],
        torch.repeat_interleave(torch.arange(len(frames)), sizes),
        torch.cat([frame.numbers for frame in frames]),
        torch.cat([frame.positions for frame in frames]),
        torch.stack([frame.lattice for frame in frames]),
        torch.stack([frame.energy for frame in frames]),
        torch.cat([frame.forces for frame in frames]),
        torch.stack([frame.stress for frame in frames]),
    )


class FrameStream(torch.utils.data.IterableDataset[Any]):  # type: ignore[misc]  # mypy does not follow torch
    """Streams the frames of a dataset, each once an epoch over all workers and ranks, without holding them.

    An epoch goes through the row groups of the dataset's files in an order of its own. Each worker of each rank takes
    an equal run of it, and shuffles `window` frames at a time: what comes together comes from a few row groups out of
    all. All of that depends on the seed, the epoch and the number of shards (workers times ranks) alone.

    It has the state that torchdata's StatefulDataLoader saves and loads, to go on in the middle of an epoch.

    Args:
        dataset: a release, a store in a folder, Parquet files; not thinned. Or its pieces.
        energy: the column to take energies from, `energy` or `energy_corrected`.
        batch_size: frames of a `Batch`, to be used with `DataLoader(..., batch_size=None)`; None yields single
            `Frame`s, for a `collate_fn` of your own or ours, `collate`.
        shuffle: whether to; else in stored order, split into runs.
        seed: another one gives other orders.
        rank: of this process; None takes torch.distributed's where it is in use.
        world_size: number of processes; None likewise.
        window: frames that are shuffled together; they are in memory of each worker twice.
        drop_last: leave out the last batch of a worker if it is not full.
        even: give each shard the same number of frames, so that all ranks make the same number of steps; up to one
            frame fewer than there are shards is left out, others each epoch.
        transform: applied to each frame or batch.
        dtype: of numbers; None leaves float64, as they are stored.

    Raises:
        LoadError: sizes that make no sense.
        FilterError: the dataset cannot be read in pieces.
    """

    def __init__(
        self,
        dataset: Dataset | Pieces,
        *,
        energy: str = "energy",
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        window: int = WINDOW,
        drop_last: bool = False,
        even: bool = True,
        transform: Callable[[Any], Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        used = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = rank if rank is not None else torch.distributed.get_rank() if used else 0
        self._ranks = world_size if world_size is not None else torch.distributed.get_world_size() if used else 1
        if not 0 <= self._rank < self._ranks:
            raise LoadError(f"rank {self._rank} of {self._ranks}: say a rank from 0 and how many there are")
        if window < 1 or (batch_size is not None and batch_size < 1):
            raise LoadError(f"batches of {batch_size} and windows of {window} frames: say 1 or more")
        self._batch_size, self._drop_last, self._even = batch_size, drop_last, even
        self._window = window if batch_size is None else -(-window // batch_size) * batch_size
        self._shuffle, self._seed = shuffle, seed
        self._transform, self._dtype = transform, dtype
        self._pieces = dataset.pieces() if isinstance(dataset, Dataset) else dataset
        self._columns = [energy if name == "energy" else name for name in LABELS]
        self._chosen = [self._pieces.rows(i) for i in range(len(self._pieces))]
        self._sizes = np.array(
            [p.n_rows if c is None else len(c) for p, c in zip(self._pieces.pieces, self._chosen, strict=True)], int
        )
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change
        self._given = self._begin = 0
        self._shards = 0

    @property
    def n_frames(self) -> int:
        """Frames of the whole dataset, over all ranks."""
        return int(self._sizes.sum())

    def n_batches(self, workers: int = 1) -> int:
        """Return how many batches (or frames) this rank gets in an epoch from so many workers."""
        shards = [self._bounds(self._rank * workers + i, self._ranks * workers) for i in range(workers)]
        size = self._batch_size or 1
        return sum((last - first) // size if self._drop_last else -(-(last - first) // size) for first, last in shards)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes, before iterating, as with torch's DistributedSampler: each has its own order."""
        self._epoch.fill_(epoch)
        self._begin = 0

    def state_dict(self) -> dict[str, int]:
        """Return how far this worker is."""
        return {"epoch": int(self._epoch), "shards": self._shards, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state, in a worker with the number and of the rank that it came from."""
        self._epoch.fill_(state["epoch"])
        self._begin, self._shards = state["given"], state["shards"]

    def __iter__(self) -> Iterator[Any]:
        """Yield this worker's share, from where the state that was loaded says."""
        worker = torch.utils.data.get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        shards, shard = self._ranks * workers, self._rank * workers + number
        begin, self._begin = self._begin, 0
        if begin and self._shards != shards:
            raise LoadError(f"the state is of {self._shards} shards (workers times ranks), and now there are {shards}")
        self._shards, self._given = shards, begin
        yield from self._share(shard, shards, begin)

    def _share(self, shard: int, shards: int, begin: int) -> Iterator[Any]:
        key = [self._seed, int(self._epoch)]
        order = np.flatnonzero(self._sizes)
        if self._shuffle:
            order = np.random.default_rng(key).permutation(order)
        ends = np.cumsum(self._sizes[order])
        first, last = self._bounds(shard, shards)
        reader = _Reader(self._pieces, self._chosen, self._columns, order, ends)
        for k, start in enumerate(range(first, last, self._window)):
            stop = min(start + self._window, last)
            done = start - first
            if done + (stop - start) <= begin:
                continue
            frames = reader.read(start, stop)
            mixed = np.arange(len(frames))
            if self._shuffle:
                mixed = np.random.default_rng([*key, shard, k]).permutation(mixed)
            yield from self._examples(frames, mixed[max(0, begin - done) :])

    def _bounds(self, shard: int, shards: int) -> tuple[int, int]:
        """Return from where to where in the order of an epoch a shard goes."""
        total = self.n_frames // shards * shards if self._even else self.n_frames
        return total * shard // shards, total * (shard + 1) // shards

    def _examples(self, frames: FlatFrames, order: NDArray[np.int64]) -> Iterator[Any]:
        tensors = _Tensors(frames, self._dtype) if self._batch_size is None else None
        size = self._batch_size or 1
        for i in range(0, len(order), size):
            chosen = order[i : i + size]
            if self._drop_last and len(chosen) < size:
                return
            example = tensors.frame(chosen[0]) if tensors else _batch(frames, chosen, self._dtype)
            self._given += len(chosen)
            yield example if self._transform is None else self._transform(example)


class _Reader:
    """Reads runs of frames of the order of an epoch; a piece that two runs share is read once."""

    def __init__(
        self,
        pieces: Pieces,
        chosen: Sequence[NDArray[np.int32] | None],
        columns: Sequence[str],
        order: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> None:
        self._pieces, self._chosen, self._columns, self._order, self._ends = pieces, chosen, columns, order, ends
        self._held: tuple[int, FlatFrames] | None = None

    def read(self, start: int, stop: int) -> FlatFrames:
        """Return the frames from one place of the order to another."""
        parts = []
        k = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            i, end = int(self._order[k]), int(self._ends[k])
            if self._held is None or self._held[0] != i:
                table = self._pieces.read(i, self._columns, self._chosen[i]).combine_chunks().rename_columns(LABELS)
                self._held = (i, joined([to_flat(batch) for batch in table.to_batches()]))
            frames = self._held[1]
            began = end - len(frames)
            parts.append(frames[start - began : min(stop, end) - began])
            start, k = min(stop, end), k + 1
        return joined(parts)


class FrameTable(torch.utils.data.Dataset[Frame]):  # type: ignore[misc]  # mypy does not follow torch
    """All frames of a dataset in memory, to be taken in any order, by any sampler.

    The numbers are in shared memory: workers of a DataLoader have no copies. Some 60 bytes an atom. Use it with
    `DataLoader(..., collate_fn=collate)`.

    Args:
        dataset: of any kind.
        dtype: of numbers; None leaves float64, as they are stored.

    Raises:
        LoadError: there are no frames.
    """

    def __init__(self, dataset: Dataset, *, dtype: torch.dtype | None = None) -> None:
        parts = list(dataset.arrays())
        if not parts:
            raise LoadError("a dataset without frames")
        frames = joined(parts)
        self._tensors = _Tensors(frames, dtype).shared()

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, i: int) -> Frame:
        """Return a frame, whose tensors are views of all of them.

        Raises:
            IndexError: there is no such frame.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self._tensors.frame(i % len(self))


class _Tensors:
    """Flat frames as tensors of the same memory."""

    def __init__(self, frames: FlatFrames, dtype: torch.dtype | None) -> None:
        self._offsets, self._ids, self._dtype = frames.offsets, frames.ids, dtype or torch.float64
        self._numbers = _tensor(frames.numbers)
        numbers = (frames.positions, frames.lattice, frames.energy, frames.forces, frames.stress)
        self._values = [_tensor(value).to(self._dtype) for value in numbers]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def shared(self) -> _Tensors:
        """Move all numbers to shared memory."""
        for value in (self._numbers, *self._values):
            value.share_memory_()
        return self

    def frame(self, i: int) -> Frame:
        positions, lattice, energy, forces, stress = self._values
        a, b = self._offsets[i], self._offsets[i + 1]
        return Frame(
            self._ids[int(i)].as_py(), self._numbers[a:b], positions[a:b], lattice[i], energy[i], forces[a:b], stress[i]
        )


def _batch(frames: FlatFrames, chosen: NDArray[np.int64], dtype: torch.dtype | None) -> Batch:
    """Gather frames. By numpy: torch would start threads for so little, which wait for each other on a busy machine."""
    sizes = frames.offsets[chosen + 1] - frames.offsets[chosen]
    ends = np.cumsum(sizes)
    atoms = np.arange(ends[-1]) + np.repeat(frames.offsets[chosen] - ends + sizes, sizes)

    def gathered(values: FloatArray, which: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values.take(which, axis=0)).to(dtype or torch.float64)

    return Batch(
        frames.ids.take(chosen).to_pylist(),
        torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes)),
        torch.from_numpy(frames.numbers.take(atoms)),
        gathered(frames.positions, atoms),
        gathered(frames.lattice, chosen),
        gathered(frames.energy, chosen),
        gathered(frames.forces, atoms),
        gathered(frames.stress, chosen),
    )


def _tensor(values: NDArray[Any]) -> Tensor:
    """Return a tensor of the same memory, or of a copy where nobody may write to it, as to Arrow's."""
    return torch.from_numpy(np.require(values, requirements="W"))
