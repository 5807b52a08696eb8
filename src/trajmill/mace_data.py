"""Frames as MACE's AtomicData: `FrameStream(dataset, transform=ToAtomicData(...))` with MACE's own DataLoader.

Extra `mace`. Importing MACE has torch load pickled code again without being asked to (`torch.load` without
`weights_only`), for the whole process: do not open files of strangers in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trajmill.errors import require
from trajmill.units import to_voigt

if TYPE_CHECKING:
    from trajmill.torch_data import Frame


@dataclass(frozen=True)
class ToAtomicData:
    """Makes a frame what MACE trains on, with its neighbours; travels to workers.

    Energies, forces and stresses are in eV, eV/A and eV/A^3, as MACE takes them. A label that is not known weighs
    nothing. Numbers are of torch's default type, as MACE makes them.

    Attributes:
        cutoff: A, the model's `r_max`.
        elements: atomic numbers that the model knows, ascending.
        head: name of the frames' head.
        heads: names of all heads of the model.
    """

    cutoff: float
    elements: Sequence[int]
    head: str = "Default"
    heads: Sequence[str] = ("Default",)

    def __call__(self, frame: Frame) -> Any:
        """Return a `mace.data.AtomicData`.

        Raises:
            MissingExtraError: MACE is not installed (extra `mace`).
            ValueError: the frame has an element that the model does not know.
        """
        data = require("mace.data", extra="mace")
        table = require("mace.tools", extra="mace").AtomicNumberTable(list(self.elements))
        labels = {
            "energy": frame.energy.item(),
            "forces": frame.forces.numpy(),
            "stress": to_voigt(frame.stress.numpy()),
        }
        known = {name: bool(np.isfinite(value).all()) for name, value in labels.items()}
        configuration = data.Configuration(
            atomic_numbers=frame.numbers.numpy(),
            positions=frame.positions.numpy(),
            properties={name: value for name, value in labels.items() if known[name]},
            property_weights={name: float(is_known) for name, is_known in known.items()},
            cell=frame.lattice.numpy(),
            pbc=(True, True, True),
            head=self.head,
        )
        return data.AtomicData.from_config(configuration, z_table=table, cutoff=self.cutoff, heads=list(self.heads))
