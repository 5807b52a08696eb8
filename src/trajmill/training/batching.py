"""Models that are asked about many structures at once, which torch-sim does; others are asked one by one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np

from trajmill.errors import ModelError, require
from trajmill.trajectory import FloatArray
from trajmill.views import Geometry

AT_ONCE = {"cpu": 50, "cuda": 2000}
"""Atoms that a model is asked about at once, by device, where nobody says how many.

On a CPU small models gain from batches; larger ones lose where a batch outgrows the processor's cache.
"""


class Prediction(NamedTuple):
    """What a model says of a structure.

    Attributes:
        energy: eV per cell, the one that the forces are the gradient of.
        forces: (n_atoms, 3) eV/A.
        stress: (3, 3) eV/A^3, positive under tension; None where the model has none.
    """

    energy: float
    forces: FloatArray
    stress: FloatArray | None


Answer = Prediction | str
"""What a model says, or why it says nothing."""


class Model(Protocol):
    """A model as it is asked.

    Attributes:
        atoms_at_once: it is handed structures until they have so many atoms together.
    """

    atoms_at_once: int

    def predict(self, geometries: Sequence[Geometry]) -> list[Answer]:
        """Return an answer for each structure, whatever becomes of the others."""


def model_of(model: Any) -> Model:
    """Return a model as it is asked: in batches where it can be and torch-sim is installed, else one by one.

    Args:
        model: an ASE calculator, a model of torch-sim's (a `ModelInterface`), or what this returned.
    """
    if isinstance(model, OneByOne | Batched):
        return model
    return Batched(model) if _can(model) and find_spec("torch_sim") else OneByOne(model)


class OneByOne:
    """An ASE calculator."""

    def __init__(self, calculator: Any) -> None:
        self.atoms_at_once = 1
        self._calculator = calculator

    def predict(self, geometries: Sequence[Geometry]) -> list[Answer]:
        """Return an answer for each structure."""
        return [self._answer(g) for g in geometries]

    def _answer(self, geometry: Geometry) -> Answer:
        ase, model = require("ase", extra="ase"), self._calculator
        atoms = ase.Atoms(numbers=geometry.numbers, positions=geometry.positions, cell=geometry.lattice, pbc=True)
        try:
            with _default_type_kept():
                atoms.calc = model
                forces = np.asarray(atoms.get_forces(), float)
                energy = float(atoms.get_potential_energy())
                # the one that the forces are the gradient of, where the model tells it from another
                energy = float(model.results.get("free_energy", energy))
                stress = atoms.get_stress(voigt=False) if "stress" in model.implemented_properties else None
        except Exception as error:  # noqa: BLE001 (models raise anything)
            return _reason(error)
        return _checked(energy, forces, stress)


class Batched:
    """A model that torch-sim can ask about many structures at once.

    Args:
        model: an ASE calculator of a MACE model, or a model of torch-sim's.
        atoms: that it is asked about at once, fewer where memory turns out too small; default `AT_ONCE`.

    Raises:
        ModelError: it cannot be asked so.
        MissingExtraError: torch-sim is not installed.
    """

    def __init__(self, model: Any, *, atoms: int | None = None) -> None:
        if not _can(model):
            raise ModelError(
                f"{type(model).__name__} cannot be asked about many structures at once; "
                "a MACE model with one head can, and MODULE:CALLABLE that gives a model of torch-sim's"
            )
        self._torch_sim = require("torch_sim", extra="torchsim")
        self._model = model if _is(model, "ModelInterface") else _mace(model)
        self.atoms_at_once = atoms or AT_ONCE.get(self._model.device.type, AT_ONCE["cpu"])

    def predict(self, geometries: Sequence[Geometry]) -> list[Answer]:
        """Return an answer for each structure, whatever becomes of the others."""
        try:
            with _default_type_kept():
                return self._answers(geometries)
        except Exception as error:  # noqa: BLE001 (models raise anything)
            if len(geometries) == 1:
                return [_reason(error)]
            if type(error).__name__ == "OutOfMemoryError":
                self.atoms_at_once = max(1, sum(len(g.numbers) for g in geometries) // 2)
        # too many for the memory, or one that the model cannot do: halves find it
        half = len(geometries) // 2
        return [*self.predict(geometries[:half]), *self.predict(geometries[half:])]

    def _answers(self, geometries: Sequence[Geometry]) -> list[Answer]:
        state = self._state(geometries)
        if hasattr(self._model, "setup_from_system_idx"):
            # torch-sim's MACE 0.3 keeps how the last batch was split where the next has the same elements in a row
            self._model.setup_from_system_idx(state.atomic_numbers, state.system_idx)
        found = {name: value.detach().cpu().double().numpy() for name, value in self._model(state).items()}
        ends = np.cumsum([len(g.numbers) for g in geometries])
        forces = np.split(found["forces"], ends[:-1])
        stresses = found.get("stress", [None] * len(geometries))
        return [_checked(float(e), f, s) for e, f, s in zip(found["energy"], forces, stresses, strict=True)]

    def _state(self, geometries: Sequence[Geometry]) -> Any:
        torch = require("torch", extra="torchsim")
        real = {"dtype": self._model.dtype, "device": self._model.device}
        whole = {"dtype": torch.int64, "device": self._model.device}
        sizes = [len(g.numbers) for g in geometries]
        # the same lattice in right-handed vectors, since some of torch-sim's models take the volume's sign for granted
        lattices = [g.lattice * np.sign(np.linalg.det(g.lattice)) for g in geometries]
        return self._torch_sim.SimState(
            positions=torch.as_tensor(np.concatenate([g.positions for g in geometries]), **real),
            masses=torch.ones(sum(sizes), **real),  # no model asks
            cell=torch.as_tensor(np.stack([lattice.T for lattice in lattices]), **real),  # vectors as columns
            pbc=True,
            atomic_numbers=torch.as_tensor(np.concatenate([g.numbers for g in geometries]), **whole),
            system_idx=torch.as_tensor(np.repeat(np.arange(len(sizes)), sizes), **whole),
        )


@contextmanager
def _default_type_kept() -> Iterator[None]:
    """Give torch its default type back: MACE leaves its own where it fails, and the next model stumbles on it."""
    torch = sys.modules.get("torch")  # a model without it need not load it
    before = torch.get_default_dtype() if torch else None
    try:
        yield
    finally:
        if torch:
            torch.set_default_dtype(before)


def _can(model: Any) -> bool:
    """Tell whether torch-sim can ask it what the calculator would say; by names, so that nothing is imported."""
    if not _is(model, "MACECalculator"):
        return _is(model, "ModelInterface")
    one = model.num_models == len(model.available_heads) == model.energy_units_to_eV == model.length_units_to_A == 1
    return bool(one and model.model_type == "MACE" and not model.use_compile and not _is_given_charges(model))


def _is_given_charges(calculator: Any) -> bool:
    return any(hasattr(model, "joint_embedding") for model in calculator.models)


def _is(model: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(model).__mro__)


def _mace(calculator: Any) -> Any:
    torch = require("torch", extra="torchsim")
    wrapped = require("torch_sim.models.mace", extra="torchsim").MaceModel
    return wrapped(calculator.models[0], device=calculator.device, dtype=getattr(torch, calculator.default_dtype))


def _checked(energy: float, forces: FloatArray, stress: FloatArray | None) -> Answer:
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        return "energy or forces that are not finite"
    return Prediction(energy, forces, stress if stress is not None and np.isfinite(stress).all() else None)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
