"""Subsets: so many frames to train and to test with, in a balance of sources, by whole trajectories.

What is drawn is a `Split` whose last part, `rest`, is what was not. Each functional of each source is dealt out by
itself, stratified by elements; trajectories that are nearly the same may lie on two sides (`trajmill leakage` finds
them), one trajectory never does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from trajmill.dataset import Dataset
from trajmill.errors import SplitError
from trajmill.rows import trajectory_id
from trajmill.splits import IntArray, Split, deal

REST = "rest"
"""The part of what was not drawn."""

LEMAT_TRAJ = {"mp": 0.1, "oqmd": 0.1, "alexandria": 0.8}
"""Shares of frames in the subsets of Ramlaoui et al. (arXiv:2508.20875), for each functional that a source has."""

WHOLE = {"scan": 0.8, "r2scan": 0.8}
"""Functionals with so little data that it is all taken, and the share of trajectories that are trained on."""

_SOURCE = "CASE WHEN {id} LIKE 'agm%' THEN 'alexandria' WHEN {id} LIKE 'oqmd-%' THEN 'oqmd' ELSE 'mp' END"
"""SQL of the source of a row of the published LeMat-Traj, which has no column for it."""


def draw(
    dataset: Dataset, frames: Mapping[str, int], *, balance: Mapping[str, float] | None = None, seed: int = 0
) -> Split:
    """Draw parts with so many frames.

    Args:
        dataset: its rows without labels are no part of it.
        frames: by name of the part, for each functional; the first is what is trained on.
        balance: shares of frames by source, which add up to 1 and are scaled to the sources that a functional has.
            None takes frames as they are, sources in proportion.
        seed: another one draws others.

    Raises:
        SplitError: there are not so many frames, or shares that make no sense.
    """
    _check(frames, balance)
    strata = _strata(dataset)
    made = _Parts(strata, (*frames, REST), seed)
    for functional in strata.functionals:
        has = strata.sources_of(functional)
        for source, share in _scaled(balance, has).items():
            wanted = [round(n * share) for n in frames.values()]
            made.deal_frames(functional, source, wanted)
    return made.split({"frames": dict(frames), "balance": balance and dict(balance), "seed": seed})


def lemat_traj(dataset: Dataset, *, train: int | None = None, test: int = 10_000, seed: int = 0) -> Split:
    """Draw the subsets of the LeMat-Traj paper, for each functional.

    PBE and PBEsol: `test` frames and `train` frames, 10 % MP, 10 % OQMD and 80 % Alexandria, as far as a source has
    the functional. SCAN and r2SCAN: all, 80 % of the trajectories to train with.

    Args:
        dataset: with all sources that are wanted.
        train: frames to train with, of each functional; None takes as many as the balance allows.
        test: frames to test with, of each functional.
        seed: another one draws others.

    Raises:
        SplitError: there are not so many frames.
    """
    strata = _strata(dataset)
    made = _Parts(strata, ("train", "test", REST), seed)
    for functional in strata.functionals:
        has = strata.sources_of(functional)
        if functional in WHOLE:
            for source in has:
                made.deal_trajectories(functional, source, WHOLE[functional])
            continue
        shares = _scaled(LEMAT_TRAJ, has)
        most = int(min(has[source] / share for source, share in shares.items()))
        n_train = most - test if train is None else train
        if n_train < 1 or n_train + test > most:
            raise SplitError(
                f"{functional}: {has} frames make {most:,} in this balance, fewer than {max(n_train, 1):,} to train "
                f"and {test:,} to test with"
            )
        for source, share in shares.items():
            made.deal_frames(functional, source, [round(n_train * share), round(test * share)])
    rule = {"preset": "lemat-traj", "train": train, "test": test, "balance": LEMAT_TRAJ, "whole": WHOLE, "seed": seed}
    return made.split(rule)


PRESETS = {"lemat-traj": lemat_traj}
"""Subsets by name."""


def _check(frames: Mapping[str, int], balance: Mapping[str, float] | None) -> None:
    if not frames or any(n < 1 for n in frames.values()) or REST in frames:
        raise SplitError(f"parts of {dict(frames)} frames: say 1 or more, and a name other than {REST}")
    if balance is not None and (any(x <= 0 for x in balance.values()) or abs(sum(balance.values()) - 1) > 1e-9):
        raise SplitError(f"shares of {dict(balance)} are to be positive and to add up to 1")


def _scaled(balance: Mapping[str, float] | None, has: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each source that there is."""
    shares = {source: float(n) for source, n in has.items()} if balance is None else balance
    there = {source: share for source, share in shares.items() if source in has}
    if not there:
        raise SplitError(f"none of the sources {', '.join(shares)}; there are {', '.join(has)}")
    return {source: share / sum(there.values()) for source, share in there.items()}


@dataclass(frozen=True)
class _Strata:
    """Trajectories with what they are drawn by."""

    ids: pa.Array
    functional: IntArray
    source: IntArray
    functionals: list[str]
    sources: list[str]
    n_frames: IntArray
    elements: pa.ListArray

    def of(self, functional: str, source: str) -> IntArray:
        """Return the trajectories of a source and functional."""
        same = (self.functional == self.functionals.index(functional)) & (self.source == self.sources.index(source))
        return np.flatnonzero(same)

    def sources_of(self, functional: str) -> dict[str, int]:
        """Return the frames by source of a functional."""
        counts = {source: int(self.n_frames[self.of(functional, source)].sum()) for source in self.sources}
        return {source: n for source, n in counts.items() if n}


def _strata(dataset: Dataset) -> _Strata:
    identity = trajectory_id(dataset.schema)
    source = "any_value(source)" if "source" in dataset.schema.names else _SOURCE.format(id="any_value(id)")
    found = dataset.ask(
        f"SELECT {identity} AS trajectory, coalesce(any_value(functional), 'unknown') AS functional, "
        f"{source} AS source, any_value(elements) AS elements, count(*) AS n FROM wanted GROUP BY 1 ORDER BY 1"
    )
    columns: dict[str, Any] = {}
    for name in ("functional", "source"):
        encoded = found[name].combine_chunks().dictionary_encode()
        columns[name] = encoded.indices.to_numpy()
        columns[f"{name}s"] = encoded.dictionary.to_pylist()
    return _Strata(
        ids=found["trajectory"].combine_chunks(),
        n_frames=found["n"].to_numpy(),
        elements=found["elements"].combine_chunks(),
        **columns,
    )


class _Parts:
    """Fills the parts of a split, a stratum at a time."""

    def __init__(self, strata: _Strata, names: tuple[str, ...], seed: int) -> None:
        self._strata, self._names, self._seed = strata, names, seed
        self._part = np.full(len(strata.ids), len(names) - 1, np.int8)
        self._notes: list[str] = []

    def deal_frames(self, functional: str, source: str, wanted: list[int]) -> None:
        """Deal out so many frames of a stratum to each part but the rest."""
        its = self._strata.of(functional, source)
        self._deal(functional, source, its, self._strata.n_frames[its], wanted, "frames")

    def deal_trajectories(self, functional: str, source: str, share: float) -> None:
        """Deal out all trajectories of a stratum, a share of them to the first part, the others to the second."""
        its = self._strata.of(functional, source)
        first = round(share * len(its))
        self._deal(functional, source, its, np.ones(len(its), np.int64), [first, len(its) - first], "trajectories")

    def _deal(
        self, functional: str, source: str, its: IntArray, weight: IntArray, wanted: list[int], unit: str
    ) -> None:
        rest = int(weight.sum()) - sum(wanted)
        if rest < 0:
            raise SplitError(f"{source} has {weight.sum():,} {unit} with {functional}, and not {sum(wanted):,}")
        elements = self._strata.elements.take(pa.array(its))
        place = self._strata.sources.index(source), self._strata.functionals.index(functional)
        rng = np.random.default_rng([self._seed, *place])
        room = np.array([*wanted, rest])
        part, notes = deal(np.arange(len(its)), weight, elements, room, self._names, rng, unit, rest=True)
        self._part[its] = part
        self._notes += [f"{source}, {functional}: {note}" for note in notes]
        got = np.bincount(part, weights=weight, minlength=len(room)).astype(int)
        for name, n, asked in zip(self._names, got, wanted, strict=False):
            if n != asked:
                self._notes.append(f"{source}, {functional}: {name} has {n:,} {unit}, and not {asked:,}")

    def split(self, rule: dict[str, Any]) -> Split:
        """Return what was dealt."""
        return Split(self._strata.ids, self._part, self._names, rule, tuple(self._notes))
