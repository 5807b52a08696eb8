"""pymatgen's JSON structures, as the Materials Project and Alexandria write them, to arrays of a whole trajectory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from trajmill.elements import NUMBERS
from trajmill.trajectory import FloatArray

T = TypeVar("T")
Rows = list[list[float | None]]


class Species(msgspec.Struct, gc=False):
    """An element on a site with its occupancy."""

    element: str
    occu: float = 1.0


class FractionalSite(msgspec.Struct, gc=False):
    """A site as pymatgen writes it: reading its Cartesian coordinates as well would double the time."""

    species: list[Species]
    abc: list[float]


class Site(msgspec.Struct, gc=False):
    """A site; `abc` are fractional, `xyz` Cartesian coordinates (A), either may be missing."""

    species: list[Species]
    abc: list[float] | None = None
    xyz: list[float] | None = None


AnySite = TypeVar("AnySite", bound=FractionalSite | Site)
"""What a document is read with: `FractionalSite`, and `Site` where that one does not fit."""


class Lattice(msgspec.Struct, gc=False):
    """Lattice vectors as rows, A."""

    matrix: list[list[float]]


class Structure(msgspec.Struct, Generic[AnySite], gc=False):
    """A pymatgen Structure dictionary."""

    lattice: Lattice
    sites: list[AnySite]


def decode(decoder: msgspec.json.Decoder[T], raw: bytes) -> T:
    """Decode JSON, also the NaN and Infinity that Python writes and the JSON standard does not know.

    Raises:
        ValueError: not JSON, or not of the decoder's type.
    """
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError:
        return msgspec.convert(parse(raw), decoder.type)  # slow, exact: values are parsed, text is not replaced


def parse(raw: bytes) -> Any:
    """Parse JSON as Python writes it.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def stack(values: Sequence[Any], shape: tuple[int, ...], name: str, faults: dict[int, str]) -> FloatArray:
    """Stack one nested list per frame into an array.

    Args:
        values: per frame a nested list of numbers; None where the source has none.
        shape: shape of one frame.
        name: what these numbers are, for the fault text.
        faults: receives a text for each frame whose numbers do not have this shape.

    Returns:
        (n_frames, *shape); NaN for null numbers, and for the whole frame where it is missing or ragged.
    """
    try:
        return _flat(values, shape).reshape(len(values), *shape)
    except (TypeError, ValueError, OverflowError):
        pass
    try:
        array = np.array(values, dtype=np.float64)  # None becomes NaN
        if array.shape == (len(values), *shape):
            return array
    except (TypeError, ValueError, OverflowError):
        pass
    array = np.full((len(values), *shape), np.nan)
    for i, value in enumerate(values):
        if value is None:
            continue
        try:
            frame = np.array(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            faults.setdefault(i, f"{name}: {_ragged(value, shape)}")
            continue
        if frame.shape == shape:
            array[i] = frame
        elif frame.ndim:  # a frame that is None as a whole is missing, not malformed
            faults.setdefault(i, f"{name} has shape {frame.shape}, expected {shape}")
    return array


def _flat(values: Sequence[Any], shape: tuple[int, ...]) -> FloatArray:
    """Flatten one nested list per frame, in half the time that numpy takes to find out how they are nested.

    Raises:
        TypeError, ValueError, OverflowError: something is missing, no number, or not of this shape.
    """
    for size in shape:
        if set(map(len, values)) != {size}:
            raise ValueError(f"not {size} in each")
        values = list(chain.from_iterable(values))
    return np.fromiter(values, np.float64, len(values))


def _ragged(value: Any, shape: tuple[int, ...]) -> str:
    """Say which row of a nested list has the wrong length."""
    for k, row in enumerate(value):
        if not isinstance(row, list) or len(row) != shape[-1]:
            n = len(row) if isinstance(row, list) else 0
            return f"row {k} has {n} components, expected {shape[-1]}"
    return "not numbers"


def structure_arrays(
    structures: Sequence[Structure[Any] | None], faults: dict[int, str]
) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Turn the structures of a trajectory into arrays.

    Positions are fractional coordinates times the lattice, as pymatgen reads them; `xyz` is used where `abc` is
    missing.

    Args:
        structures: one per frame; None where it is missing.
        faults: receives a text for each frame that has no usable structure.

    Returns:
        numbers (n_atoms,), lattice (n_frames, 3, 3) A and positions (n_frames, n_atoms, 3) A; NaN in faulty frames.
        The first readable frame decides the sites; a frame with others is faulty.
    """
    accepted: list[list[Species]] | None = None
    sites: list[str] = []
    matrices: list[Any] = []
    coordinates: list[Any] = []
    cartesian: list[int] = []
    for i, structure in enumerate(structures):
        matrices.append(None)
        coordinates.append(None)
        if structure is None:
            faults.setdefault(i, "no structure")
            continue
        species = [site.species for site in structure.sites]
        if accepted is None or species != accepted:
            symbols = [one[0].element for one in species if len(one) == 1 and one[0].occu == 1]
            if fault := _site_fault(symbols, species, sites):
                faults.setdefault(i, fault)
                continue
            accepted, sites = species, symbols
        matrices[i] = structure.lattice.matrix
        coordinates[i] = [site.abc for site in structure.sites]
        if None in coordinates[i]:
            coordinates[i] = [site.xyz for site in structure.sites]
            cartesian.append(i)
    numbers = np.array([NUMBERS[s] for s in sites], dtype=np.int64)
    lattice = stack(matrices, (3, 3), "lattice", faults)
    raw = stack(coordinates, (len(numbers), 3), "positions", faults)
    with np.errstate(invalid="ignore", over="ignore"):  # inf and huge numbers are for a rule to reject
        positions = raw @ lattice
    positions[cartesian] = raw[cartesian]
    return numbers, lattice, positions


def _site_fault(symbols: Sequence[str], species: Sequence[Sequence[Species]], before: Sequence[str]) -> str | None:
    """Say what is wrong with the sites of a frame, None when nothing is.

    Args:
        symbols: of the sites that one element occupies.
        species: of all sites.
        before: symbols of an earlier frame, empty when there is none.
    """
    if len(symbols) != len(species):
        return "a site is not occupied by exactly one element"
    if not symbols:
        return "no sites"
    if unknown := sorted(set(symbols) - NUMBERS.keys()):
        return f"unknown elements {', '.join(unknown)}"
    if not before or symbols == before:
        return None
    same = len(symbols) == len(before)
    return "other elements or order of sites than before" if same else f"{len(symbols)} sites, {len(before)} before"
