"""Splits: which trajectories are for training, which to validate and to test with.

A trajectory is never on two sides: its frames are nearly the same structure. With groups (all trajectories of a
material, a formula, a chemical system or a prototype) neither is a group. Within that, every part has each element in
proportion to its share, as far as there are enough groups, and no part other than the first has an element that the
first has not.

The method is iterative stratification (Sechidis, Tsoumakas, Vlahavas, ECML PKDD 2011): the rarest element first, since
it has the fewest ways to be dealt out. Here each element's groups are dealt out at once, in proportion to what each
part still lacks of it, so that a pass over the elements is all it takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trajmill.dataset import Dataset
from trajmill.errors import SplitError
from trajmill.rows import trajectory_id
from trajmill.writing import StrPath, whole

_LAST_SPACE_GROUP = "coalesce(max_by(space_group_it_number, relaxation_step), 0)"

GROUPS = {
    "trajectory": None,
    "material": "coalesce(any_value(immutable_id), any_value(id))",
    "formula": "any_value(chemical_formula_reduced)",
    "chemical_system": "array_to_string(any_value(elements), '-')",
    "prototype": "any_value(chemical_formula_anonymous) || '/' || " + _LAST_SPACE_GROUP,
}
"""What may not be on two sides: SQL of what a trajectory's group is."""

METADATA = b"trajmill.split"

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Which part each trajectory of a dataset is in.

    Attributes:
        ids: of the trajectories, sorted.
        part: (n_trajectories,) index of the part of each.
        names: of the parts.
        rule: how it was made: fractions, groups, seed.
        notes: what could not be had, in words.
    """

    ids: pa.Array
    part: NDArray[np.int8]
    names: tuple[str, ...]
    rule: dict[str, Any]
    notes: tuple[str, ...] = ()
    _keys: NDArray[np.bytes_] | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> pa.Array:
        """Return the trajectories of a part.

        Raises:
            SplitError: there is no such part.
        """
        if name not in self.names:
            raise SplitError(f"no part {name}; there are {', '.join(self.names)}")
        return self.ids.filter(pa.array(self.part == self.names.index(name)))

    @property
    def digest(self) -> str:
        """What tells it from any other split: SHA-256 of identifiers and their parts."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        digest.update("\n".join(self.ids.to_pylist()).encode())
        digest.update(self.part.tobytes())
        return digest.hexdigest()

    def of(self, dataset: Dataset, name: str) -> Dataset:
        """Return the part of a dataset, which may be another one than it was made for.

        Raises:
            SplitError: there is no such part, or the dataset has a trajectory that the split does not know.
        """
        ids = dataset.trajectory_ids()
        unknown = ids.filter(pc.invert(pc.is_in(ids, self.ids)))
        if len(unknown):
            raise SplitError(
                f"{len(unknown):,} trajectories are not in this split, such as {unknown[0]}; "
                "it was made for other data, or with another filter"
            )
        return dataset.only(self[name])

    def parts_of(self, ids: pa.Array | pa.ChunkedArray) -> IntArray:
        """Return the index of the part of each of these trajectories, -1 for one that the split does not know."""
        if self._keys is None:
            object.__setattr__(self, "_keys", np.asarray(self.ids.to_numpy(zero_copy_only=False), "S"))
        assert self._keys is not None  # noqa: S101 (just made)
        encoded = ids.dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        names = np.array(encoded.dictionary.to_pylist(), "S")
        place = np.minimum(np.searchsorted(self._keys, names), len(self._keys) - 1)
        part: IntArray = np.where(self._keys[place] == names, self.part[place].astype(np.int64), -1)
        found: IntArray = part[encoded.indices.to_numpy()]
        return found

    def save(self, path: StrPath) -> None:
        """Write it as a Parquet file with the columns `trajectory_id` and `split`, how it was made in its metadata.

        Raises:
            SplitError: it cannot be written.
        """
        about = {"rule": self.rule, "names": self.names, "notes": self.notes, "digest": self.digest}
        names = pa.DictionaryArray.from_arrays(pa.array(self.part), pa.array(self.names))
        table = pa.table({"trajectory_id": self.ids, "split": names.cast(pa.string())})
        table = table.replace_schema_metadata({METADATA: json.dumps(about)})
        with whole(path, SplitError) as aside:
            pq.write_table(table, aside, compression="zstd", column_encoding={"trajectory_id": "DELTA_BYTE_ARRAY"},
                           use_dictionary=["split"])  # fmt: skip

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read one that was saved.

        Raises:
            SplitError: it is none, or was changed.
        """
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[METADATA])
            names = tuple(about["names"])
            part = pc.index_in(table["split"], pa.array(names)).to_numpy().astype(np.int8)
            split = cls(table["trajectory_id"].combine_chunks(), part, names, about["rule"], tuple(about["notes"]))
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException) as error:
            raise SplitError(f"{path}: no split of trajmill ({error})") from error
        if split.digest != about["digest"]:
            raise SplitError(f"{path}: was changed since it was made; its digest differs")
        return split


def split(
    dataset: Dataset, fractions: Mapping[str, float], *, by: str = "trajectory", stratify: bool = True, seed: int = 0
) -> Split:
    """Split a dataset by trajectories.

    Args:
        dataset: its rows without labels are no part of it.
        fractions: of the trajectories, by name of the part; they add up to 1. The first is what is trained on.
        by: what may not be on two sides, one of `GROUPS`.
        stratify: whether parts are to have elements in proportion.
        seed: another one gives another split.

    Raises:
        SplitError: fractions or groups that make no sense, or too few groups.
    """
    if by not in GROUPS:
        raise SplitError(f"no groups by {by}; there are {', '.join(GROUPS)}")
    shares = np.array(list(fractions.values()), float)
    if not len(shares) or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-9:
        raise SplitError(f"fractions of {dict(fractions)} are to be positive and to add up to 1")
    identity = trajectory_id(dataset.schema)
    columns = f"{identity} AS trajectory, any_value(elements) AS elements, {GROUPS[by] or 'NULL'} AS grouped"
    found = dataset.ask(f"SELECT {columns} FROM wanted GROUP BY 1 ORDER BY 1")
    ids = found["trajectory"].combine_chunks()
    if by == "trajectory":
        groups, n_groups = np.arange(len(ids)), len(ids)
    else:
        encoded = found["grouped"].combine_chunks().dictionary_encode(null_encoding="encode")
        groups, n_groups = encoded.indices.to_numpy(), len(encoded.dictionary)
    if n_groups < len(shares):
        raise SplitError(f"{n_groups} groups by {by} cannot make {len(shares)} parts")
    elements = found["elements"].combine_chunks() if stratify else None
    weight = np.bincount(groups, minlength=n_groups)
    rng = np.random.default_rng(seed)
    of_group, notes = deal(groups, weight, elements, _whole_numbers(shares * weight.sum()), tuple(fractions), rng)
    rule = {"fractions": dict(fractions), "by": by, "stratify": stratify, "seed": seed}
    return Split(ids, of_group[groups].astype(np.int8), tuple(fractions), rule, notes)


def deal(
    groups: IntArray,
    weight: IntArray,
    elements: pa.ListArray | None,
    room: IntArray,
    names: tuple[str, ...],
    rng: np.random.Generator,
    unit: str = "trajectories",
    *,
    rest: bool = False,
) -> tuple[IntArray, tuple[str, ...]]:
    """Deal groups out to parts.

    Args:
        groups: (n_trajectories,) index of the group of each.
        weight: (n_groups,) of each.
        elements: of each trajectory, to stratify by; None does not.
        room: (n_parts,) weight that each part is to have; the sum is that of all groups.
        names: of the parts.
        rng: what is drawn from.
        unit: what weight counts, for the notes.
        rest: whether the last part is of what is not used: what elements it has does not matter.

    Returns:
        (n_groups,) index of the part of each, and what could not be had, in words.
    """
    n_groups = len(weight)
    shares = room / max(room.sum(), 1)
    room = room.copy()
    part, rank = np.full(n_groups, -1), rng.permutation(n_groups)
    members = _members(groups, n_groups, elements) if elements is not None else {}
    dealt: list[IntArray] = []
    for its in [*sorted(members.values(), key=len), np.arange(n_groups)]:
        free = its[part[its] < 0]
        free = free[np.argsort(rank[free])]
        if len(its) == n_groups:
            wanted = room.astype(float)
        else:
            there = np.bincount(part[its] + 1, weights=weight[its], minlength=len(shares) + 1)[1:]
            wanted = shares * weight[its].sum() - there
        part[free] = _in_proportion(weight[free], wanted)
        room = room - np.bincount(part[free], weights=weight[free], minlength=len(shares)).astype(np.int64)
        dealt.append(free)
    _even_out(part, weight, room, np.concatenate(dealt)[::-1])
    return part, tuple(_cover(part, weight, members, names[:-1] if rest else names, unit))


def _whole_numbers(shares: NDArray[np.float64]) -> IntArray:
    """Round so that the sum stays: what has lost most by rounding down goes up."""
    down = np.floor(shares + 1e-9).astype(np.int64)
    missing = round(shares.sum()) - down.sum()
    down[np.argsort(down - shares, kind="stable")[:missing]] += 1
    return down


def _members(groups: IntArray, n_groups: int, elements: pa.ListArray) -> dict[str, IntArray]:
    """Return the groups that have each element, sorted."""
    flat = elements.flatten().dictionary_encode()
    owner = np.repeat(groups, pc.list_value_length(elements).to_numpy())
    pairs = np.unique(flat.indices.to_numpy().astype(np.int64) * n_groups + owner)
    borders = np.searchsorted(pairs, np.arange(1, len(flat.dictionary)) * n_groups)
    return dict(zip(flat.dictionary.to_pylist(), (its % n_groups for its in np.split(pairs, borders)), strict=True))


def _in_proportion(weight: IntArray, wanted: NDArray[np.float64]) -> IntArray:
    """Deal groups out in the order given: each part gets a run of them, as long as it wants."""
    wanted = np.maximum(wanted, 0)
    if not wanted.sum():
        wanted = np.ones(len(wanted))
    middle = np.cumsum(weight) - weight / 2
    borders = np.cumsum(wanted)[:-1] * (weight.sum() / wanted.sum())
    return np.searchsorted(borders, middle)


def _even_out(part: IntArray, weight: IntArray, room: IntArray, order: IntArray) -> None:
    """Move groups, those of the commonest elements first, from parts that have too many to parts that have room."""
    for full in np.flatnonzero(room < 0):
        its = order[part[order] == full]
        for free in np.flatnonzero(room > 0):
            # as many as go, one after the other, where each fits into what is left over
            amount = min(-room[full], room[free])
            fitting = its[(weight[its] <= amount) & (part[its] == full)]
            moved = fitting[np.cumsum(weight[fitting]) <= amount]
            part[moved] = free
            room[free] -= weight[moved].sum()
            room[full] += weight[moved].sum()
            while room[full] < 0 < room[free]:  # what is left is less than any group that could move alone
                gained = _swap(part, weight, order, (int(full), int(free)), int(min(-room[full], room[free])))
                if not gained:
                    break
                room[free] -= gained
                room[full] += gained


def _swap(part: IntArray, weight: IntArray, order: IntArray, parts: tuple[int, int], most: int) -> int:
    """Swap a group of one part for a lighter one of another, and return by how much, at most so much; 0 if none is."""
    weights, first = [], []
    for which in parts:
        its = order[part[order] == which]
        distinct, index = np.unique(weight[its], return_index=True)
        weights.append(distinct)
        first.append(its[index])
    gain = weights[0][:, None] - weights[1][None, :]
    gain[gain > most] = 0
    if gain.size == 0 or gain.max() <= 0:
        return 0
    i, j = np.unravel_index(np.argmax(gain), gain.shape)
    part[first[0][i]], part[first[1][j]] = parts[1], parts[0]
    return int(gain[i, j])


def _cover(
    part: IntArray, weight: IntArray, members: dict[str, IntArray], names: tuple[str, ...], unit: str
) -> list[str]:
    """Give the first part a group of each element that another part has, one as large going back where it can."""
    notes: list[str] = []
    count = {element: int((part[its] == 0).sum()) for element, its in members.items()}
    missing = [e for e, n in count.items() if not n and (part[members[e]] < len(names)).any()]
    if not missing:
        return notes
    rare = np.zeros(len(part), bool)  # groups that the first part cannot spare
    for element, its in members.items():
        here = its[part[its] == 0]
        if count[element] <= len(missing) + 1:
            rare[here] = True
    for element in missing:
        its = members[element]
        if (part[its] == 0).any():  # another one of its elements was missing too
            continue
        group = its[np.argmin(weight[its])]
        spare = np.flatnonzero((part == 0) & (weight == weight[group]) & ~rare)
        if len(spare):
            part[spare[0]] = part[group]
            rare[spare[0]] = True
        else:
            of = names[part[group]] if part[group] < len(names) else "what is left over"
            notes.append(f"{of} is {weight[group]} {unit} short, so that {names[0]} has {element}")
        part[group] = 0
        rare[group] = True
    return notes
