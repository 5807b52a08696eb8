"""The potential-energy surface that a dataset samples in a chemical system, in two dimensions.

Each frame becomes one SOAP vector (Bartok, Kondor, Csanyi, Phys. Rev. B 87, 184115, 2013), averaged over its atoms
after the power spectrum is taken (`outer`), so that cells of any size compare. The two directions in which all frames
of all datasets differ most (PCA) are the plane; the height is the formation energy per atom.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trajmill.dataset import Dataset
from trajmill.elements import NUMBERS
from trajmill.errors import FigureError, require
from trajmill.trajectory import FloatArray, Trajectory

CUTOFF, N_MAX, L_MAX = 5.0, 8, 6
"""Of SOAP: A, radial and angular basis functions; those of the LeMat-Traj paper."""

PRESETS = {"Fe-Cu-Al-Ni": ("Fe", "Cu", "Al", "Ni"), "Na-Cl-O": ("Na", "Cl", "O"), "Fe-Cu": ("Fe", "Cu")}
"""The chemical systems that the LeMat-Traj paper shows."""

BATCH = 500
"""Frames that are described at once."""

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Surface:
    """Frames in the plane that tells them apart best.

    Attributes:
        elements: the chemical system.
        label: (n_frames,) index of the dataset of each.
        labels: names of the datasets.
        trajectory: (n_frames,) identifier of the trajectory.
        step: (n_frames,) number of the frame in it.
        place: (n_frames, 2) principal components.
        energy: (n_frames,) formation energy, eV/atom.
        explained: (2,) share of the variance that each component explains.
        references: for each dataset, energy of each element, eV/atom.
    """

    elements: tuple[str, ...]
    label: NDArray[np.int64]
    labels: tuple[str, ...]
    trajectory: NDArray[np.str_]
    step: NDArray[np.int64]
    place: FloatArray
    energy: FloatArray
    explained: FloatArray
    references: tuple[dict[str, float], ...]

    def __len__(self) -> int:
        return len(self.energy)


def surface(
    datasets: Mapping[str, Dataset],
    elements: Sequence[str],
    *,
    subsets: bool = False,
    functional: str = "pbe",
    references: Mapping[str, float] | None = None,
    jobs: int = 1,
    report: Report = lambda *_: None,
) -> Surface:
    """Lay out the frames of a chemical system.

    Args:
        datasets: by the name that is shown. One functional is taken of each, without +U, whose energies do not compare.
        elements: the chemical system.
        subsets: whether to take frames with any of the elements and no other; else only those with all of them.
        functional: which.
        references: energy of elements, eV/atom; None takes the lowest of each dataset's own frames of the element.
        jobs: processes that compute SOAP.
        report: told frames done and frames in all.

    Raises:
        MissingExtraError: dscribe is not installed (extra `pes`).
        FigureError: no such frames, unknown elements, or no reference for one.
    """
    if unknown := [e for e in elements if e not in NUMBERS]:
        raise FigureError(f"no element {unknown[0]}; write symbols, such as Fe,Cu")
    wanted = {name: _chosen(dataset, elements, functional, subsets) for name, dataset in datasets.items()}
    own = tuple(dict(references or _references(d, elements, functional, name)) for name, d in datasets.items())
    if missing := [e for e in elements for r in own if e not in r]:
        raise FigureError(f"no reference energy of {missing[0]} was given")
    total = sum(len(dataset) for dataset in wanted.values())
    if total < 3:
        raise FigureError(f"{total} frames of {'-'.join(elements)} with {functional} make no surface")
    describe = _soap(elements)
    facts: list[tuple[int, str, int, float]] = []
    with _features(total, describe.get_number_of_features()) as features:
        for label, (dataset, reference) in enumerate(zip(wanted.values(), own, strict=True)):
            for frames in _batched(dataset.trajectories()):
                atoms = [_atoms(t, i) for t, i in frames]
                features[len(facts) : len(facts) + len(frames)] = describe.create(atoms, n_jobs=jobs).reshape(
                    len(atoms), -1
                )
                facts += [
                    (label, t.trajectory_id, int(t.relaxation_step[i]), _formation(t, i, reference)) for t, i in frames
                ]
                report(len(facts), total)
        place, explained = principal_components(features)
    columns = zip(*facts, strict=True)
    labels, trajectories, steps, energies = (np.array(column) for column in columns)
    return Surface(tuple(elements), labels, tuple(datasets), trajectories, steps, place, energies, explained, own)


def principal_components(features: NDArray[np.float32], batch: int = 10_000) -> tuple[FloatArray, FloatArray]:
    """Project onto the two directions of largest variance, by the covariance, a batch at a time.

    Args:
        features: (n_frames, n_features), in memory or in a file.
        batch: rows that are in memory at once.

    Returns:
        (n_frames, 2) components, the sign such that the largest weight of each is positive, and (2,) the share of the
        variance that they explain.
    """
    eigh = require("scipy.linalg", extra="pes").eigh
    n, size = features.shape
    parts = [slice(i, min(i + batch, n)) for i in range(0, n, batch)]
    mean = sum(features[part].sum(axis=0, dtype=float) for part in parts) / n
    covariance = np.zeros((size, size))
    for part in parts:
        centred = features[part] - mean
        covariance += centred.T @ centred
    values, vectors = eigh(covariance, subset_by_index=[size - 2, size - 1])
    vectors = vectors[:, ::-1] * np.sign(vectors[np.abs(vectors).argmax(axis=0), [0, 1]])[::-1]
    variance = max(float(np.trace(covariance)), np.finfo(float).tiny)
    return np.concatenate([(features[part] - mean) @ vectors for part in parts]), values[::-1] / variance


def interpolated(found: Surface, points: int = 200) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return a grid over the plane and the energy on it, linear between frames and NaN outside of their hull.

    Frames in the same place count by their lowest energy.

    Returns:
        (points,) first component, (points,) second component, (points, points) eV/atom, by second and first component.
    """
    linear = require("scipy.interpolate", extra="pes").LinearNDInterpolator
    low, high = found.place.min(axis=0), found.place.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    rounded = np.round((found.place - low) / spread, 6)  # triangles of frames that are all but the same have no area
    order = np.argsort(found.energy, kind="stable")
    _, first = np.unique(rounded[order], axis=0, return_index=True)
    its = order[first]
    if len(its) < 3:
        raise FigureError("all frames are in the same place; there is no surface between them")
    x, y = (np.linspace(low[k], high[k], points) for k in range(2))
    at = np.stack(np.meshgrid((x - low[0]) / spread[0], (y - low[1]) / spread[1]), axis=-1)
    try:
        height: FloatArray = linear(rounded[its], found.energy[its])(at)
    except require("scipy.spatial", extra="pes").QhullError as error:
        raise FigureError("all frames are on a line; there is no surface between them") from error
    return x, y, height


def save_points(found: Surface, folder: Path) -> None:
    """Write what the figures show: `points.parquet`, a row a frame, and `references.json`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "dataset": np.array(found.labels)[found.label],
            "trajectory_id": found.trajectory,
            "relaxation_step": found.step,
            "component_1": found.place[:, 0],
            "component_2": found.place[:, 1],
            "formation_energy": found.energy,
        }
    )
    pq.write_table(table, folder / "points.parquet")
    about = {
        "elements": found.elements,
        "explained_variance": found.explained.tolist(),
        "references_ev_per_atom": dict(zip(found.labels, found.references, strict=True)),
        "soap": {"r_cut": CUTOFF, "n_max": N_MAX, "l_max": L_MAX, "average": "outer"},
    }
    (folder / "references.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _chosen(dataset: Dataset, elements: Sequence[str], functional: str, subsets: bool) -> Dataset:
    """Take the frames of a chemical system."""
    listed = ", ".join(f'"{e}"' for e in elements)
    condition = f'elements HAS ONLY {listed} AND functional = "{functional}"'
    if not subsets:
        condition += f" AND elements HAS ALL {listed}"
    if "run_type" in dataset.schema.names:
        condition += ' AND (run_type IS UNKNOWN OR run_type != "GGA+U")'
    return dataset.filter(condition)


def _references(dataset: Dataset, elements: Sequence[str], functional: str, name: str) -> dict[str, float]:
    """Find the lowest energy per atom among frames of each element alone."""
    alone = _chosen(dataset, elements, functional, subsets=True).filter("nelements = 1")
    table = alone.ask("SELECT elements[1] AS element, min(energy / nsites) AS e FROM wanted GROUP BY 1")
    found = dict(zip(table["element"].to_pylist(), table["e"].to_pylist(), strict=True))
    if missing := [e for e in elements if e not in found]:
        raise FigureError(
            f"{name}: no frames of {missing[0]} alone to take its energy from; give --reference {missing[0]}=eV"
        )
    return found


def _formation(t: Trajectory, frame: int, references: Mapping[str, float]) -> float:
    return float((t.energy[frame] - sum(references[s] for s in t.symbols)) / t.n_atoms)


def _soap(elements: Sequence[str]) -> Any:
    return require("dscribe.descriptors", extra="pes").SOAP(
        species=list(elements), r_cut=CUTOFF, n_max=N_MAX, l_max=L_MAX, average="outer", periodic=True, dtype="float32"
    )


def _atoms(t: Trajectory, frame: int) -> Any:
    ase = require("ase", extra="pes")
    return ase.Atoms(numbers=t.numbers, positions=t.positions[frame], cell=t.lattice[frame], pbc=True)


def _batched(trajectories: Iterable[Trajectory]) -> Iterator[list[tuple[Trajectory, int]]]:
    held: list[tuple[Trajectory, int]] = []
    for t in trajectories:
        held += [(t, i) for i in range(len(t))]
        while len(held) >= BATCH:
            yield held[:BATCH]
            held = held[BATCH:]
    if held:
        yield held


@contextmanager
def _features(n: int, size: int) -> Iterator[NDArray[np.float32]]:
    """Lend room for vectors of all frames, in a file: four elements take 15 kB a frame."""
    with tempfile.TemporaryFile(prefix="trajmill-") as file:
        file.truncate(max(n * size, 1) * 4)
        yield np.memmap(file, np.float32, "r+", shape=(n, size))
