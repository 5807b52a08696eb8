"""Batches of frames as MACE's graphs: `FrameStream(dataset, batch_size=128, transform=ToGraphs(...))`.

Extra `mace`. Importing MACE has torch load pickled code again without being asked to (`torch.load` without
`weights_only`), for the whole process: do not open files of strangers in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from trajmill.elements import SYMBOLS
from trajmill.errors import LoadError, require
from trajmill.trajectory import FloatArray

if TYPE_CHECKING:
    from trajmill.torch_data import Batch

_UNKNOWN = -1


@dataclass(frozen=True)
class ToGraphs:
    """Makes a batch of frames what MACE trains on, with all neighbours; travels to workers.

    The graphs are those of MACE's own `AtomicData` and its collater, made for a batch at once: one object and a few
    tensors, where theirs are 30 for each frame. Energies, forces and stresses are in eV, eV/A and eV/A^3, as MACE takes
    them. A label that is not known is 0 and weighs nothing.

    Attributes:
        cutoff: A, the model's `r_max`.
        elements: atomic numbers that the model knows, ascending.
        dtype: of numbers; None takes torch's default type, as MACE does.
    """

    cutoff: float
    elements: Sequence[int]
    dtype: torch.dtype | None = None

    def __call__(self, batch: Batch) -> Any:
        """Return a `mace.tools.torch_geometric.Batch`.

        Raises:
            MissingExtraError: MACE is not installed (extra `mace`).
            LoadError: the batch has an element that the model does not know.
        """
        graphs = require("mace.tools.torch_geometric", extra="mace").Batch
        dtype = self.dtype or torch.get_default_dtype()
        n = len(batch.ids)
        ends = ends_of(batch)
        edges, unit_shifts, owner = neighbours(batch, ends, self.cutoff)
        shifts = np.einsum("ei,eij->ej", unit_shifts, batch.lattice.numpy()[owner])
        energy, energy_weight = _known(batch.energy, dtype)
        stress, stress_weight = _known(batch.stress, dtype)
        forces, _ = _known(batch.forces, dtype)
        lost = np.add.reduceat(~np.isfinite(batch.forces.numpy()).all(axis=1), ends[:-1])
        return graphs(
            batch=batch.frame,
            ptr=torch.from_numpy(ends),
            edge_index=torch.from_numpy(edges),
            shifts=torch.from_numpy(shifts).to(dtype),
            unit_shifts=torch.from_numpy(unit_shifts).to(dtype),
            positions=batch.positions.to(dtype),
            cell=batch.lattice.reshape(-1, 3).to(dtype),
            node_attrs=self._one_hot(batch.numbers.numpy(), dtype),
            head=torch.zeros(n, dtype=torch.int64),
            weight=torch.ones(n, dtype=dtype),
            energy=energy,
            forces=forces,
            stress=stress,
            energy_weight=energy_weight,
            forces_weight=torch.from_numpy(lost == 0).to(dtype),
            stress_weight=stress_weight,
            virials=None,  # MACE asks whether there are any
        )

    def _one_hot(self, numbers: NDArray[np.int64], dtype: torch.dtype) -> torch.Tensor:
        place = np.full(max(*self.elements, numbers.max()) + 1, _UNKNOWN)
        place[list(self.elements)] = np.arange(len(self.elements))
        index = place[numbers]
        if (index == _UNKNOWN).any():
            raise LoadError(f"the model does not know {SYMBOLS[numbers[index == _UNKNOWN][0]]}")
        return torch.nn.functional.one_hot(torch.from_numpy(index), len(self.elements)).to(dtype)


def ends_of(batch: Batch) -> NDArray[np.int64]:
    """Return where the atoms of each frame begin and end, (n_frames + 1,)."""
    sizes = np.bincount(batch.frame.numpy(), minlength=len(batch.ids))
    return np.concatenate([[0], np.cumsum(sizes)])


def neighbours(
    batch: Batch, ends: NDArray[np.int64], cutoff: float
) -> tuple[NDArray[np.int64], FloatArray, NDArray[np.int64]]:
    """Find all pairs of atoms of a batch that are within a cut-off.

    Args:
        batch: of frames.
        ends: (n_frames + 1,) where atoms of each frame begin and end.
        cutoff: A.

    Returns:
        Atoms (2, n_edges), by how many cells they are apart (n_edges, 3), and the frame of each edge (n_edges,).
    """
    neighbour_list = require("matscipy.neighbours", extra="mace").neighbour_list
    positions, lattice = batch.positions.numpy().astype(float), batch.lattice.numpy().astype(float)
    found = [
        neighbour_list("ijS", pbc=(True,) * 3, cell=cell, positions=positions[a:b], cutoff=cutoff)
        for cell, a, b in zip(lattice, ends, ends[1:], strict=False)
    ]
    counts = [len(senders) for senders, *_ in found]
    edges = np.array([np.concatenate([part[k] for part in found]) for k in (0, 1)], np.int64)
    return (
        edges + np.repeat(ends[:-1], counts),
        np.concatenate([part[2] for part in found]).astype(float),
        np.repeat(np.arange(len(counts)), counts),
    )


def _known(label: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return labels with 0 for those that are unknown, and their weights, (n,) 1 or 0."""
    known = torch.isfinite(label.reshape(len(label), -1)).all(dim=1)
    return label.nan_to_num(0, 0, 0).to(dtype), known.to(dtype)
