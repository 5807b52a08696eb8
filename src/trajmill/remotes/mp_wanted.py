"""Which rows of the Materials Project's trajectories a build can keep: by stored run type and by licence."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from trajmill.sources.mp_documents import Material
from trajmill.sources.mp_ids import canonical_task_id
from trajmill.sources.mp_materials import facts_of
from trajmill.sources.vasp_types import normalise_run_type, stored_types

if TYPE_CHECKING:
    import pyarrow as pa


class Licences:
    """Licences of tasks, in some 10 bytes a task (two of two million share a hash with a chance of 1e-7).

    Args:
        materials: documents; where several name a task, one with an accepted licence is enough.
        accept: licences the rule accepts.
        keep_orphans: whether a task that no material names is wanted.
    """

    def __init__(self, materials: Iterable[Material], accept: Sequence[str], *, keep_orphans: bool) -> None:
        self._keep_orphans = keep_orphans
        self._names: list[str] = []
        codes = dict.fromkeys(accept, -1)
        pairs = np.fromiter(self._pairs(materials, codes), [("task", "u8"), ("code", "i2")])
        pairs.sort(order=["task", "code"])  # an accepted licence comes first
        first = np.concatenate([[True], pairs["task"][1:] != pairs["task"][:-1]])[: len(pairs)]
        self._tasks, self._codes = pairs["task"][first], pairs["code"][first]

    def _pairs(self, materials: Iterable[Material], codes: dict[str, int]) -> Iterator[tuple[int, int]]:
        for material in materials:
            for task, facts in facts_of(material):
                code = codes.setdefault(facts.license or "", len(self._names))
                if code == len(self._names):
                    self._names.append(f"licence {facts.license}" if facts.license else "no licence")
                yield _hash(task), code

    def reason(self, task: str) -> str | None:
        """Say why a task is not wanted, None when it is; `task` is a canonical id."""
        value = np.uint64(_hash(task))
        i = int(np.searchsorted(self._tasks, value))
        if i == len(self._tasks) or self._tasks[i] != value:
            return None if self._keep_orphans else "no material"
        return None if self._codes[i] < 0 else self._names[self._codes[i]]


def _hash(task: str) -> int:
    return int.from_bytes(hashlib.blake2b(task.encode(), digest_size=8).digest())


class Wanted:
    """Which rows of trajectories keep their arrays.

    Args:
        run_types: stored run types that are wanted; so are rows that store none.
        licences: None when no licence is asked for.
    """

    def __init__(self, run_types: Iterable[str], licences: Licences | None) -> None:
        self._run_types = {normalise_run_type(name) for name in run_types} | {None}
        self._licences = licences

    def reasons(self, keys: pa.Table, partition: Mapping[str, str]) -> list[str | None]:
        """Say of each row why it loses its arrays, None where it keeps them.

        Args:
            keys: the key columns.
            partition: values of those that are in the path.
        """
        from trajmill.sources.materials_project_delta import N_STEPS, TYPES

        def values(name: str) -> Iterable[Any]:
            return keys[name].to_pylist() if name in keys.column_names else [partition.get(name)] * len(keys)

        return [self._reason(*row) for row in zip(*map(values, (*TYPES, N_STEPS)), strict=True)]

    def _reason(self, identifier: Any, run_type: Any, task_type: Any, n_steps: int | None) -> str | None:
        if n_steps is None:  # without arrays nobody would know how many frames it has
            return None
        if _run_type(run_type, task_type) not in self._run_types:
            return f"run type {run_type}"
        if self._licences is None or identifier is None:
            return None
        return self._licences.reason(canonical_task_id(str(identifier)))


@lru_cache(4096)
def _run_type(run_type: Any, task_type: Any) -> str | None:
    return stored_types(run_type, task_type)[0]
