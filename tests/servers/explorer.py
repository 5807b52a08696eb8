"""The explorer on a free port of this machine, over a small store whose content the tests know."""

from __future__ import annotations

import http.client
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from factories import make_store, make_trajectory
from trajmill.explorer.server import Explorer

WAIT = 20


def make_samples(path: Path) -> Path:
    """Make a store: three sources, four functionals, known and unknown stress, one run with frames left out."""
    groups = np.array([1, 1, 225], np.int32)
    made = [
        make_trajectory("mp-1", symbols=("Na", "Cl"), space_group=groups, notes=("cut-off was inferred",)),
        make_trajectory("mp-2", symbols=("Fe", "Fe", "O"), energy=-21.0, functional="r2scan"),
        make_trajectory("mp-3", symbols=("Fe", "O", "O"), energy=-19.0, relaxation_converged=True),
        make_trajectory("mp-4", symbols=("O", "Si", "O"), energy=-25.0, functional="pbesol", n_frames=1),
    ]
    made += [  # more than a page of them
        make_trajectory(
            f"agm{i:09d}",
            symbols=("Al",) * (1 + i % 7) + ("O",) * (i % 2),
            energy=-3.0 * (1 + i),
            n_frames=2 + i % 4,
            functional=("pbe", "scan")[i % 2],
            space_group=np.full(2 + i % 4, 1 + 3 * i, np.int32),
            asset=f"alexandria/{i % 3}.json.bz2",
        )
        for i in range(60)
    ]
    oqmd = make_trajectory("oqmd-5", symbols=("Mg", "O"), n_frames=4, asset="oqmd/a", relaxation_converged=True)
    steps = np.array([0, 2, 5, 6], np.int32)
    stages = np.array([0, 0, 1, 1], np.int32)
    unknown = np.full((4, 3, 3), np.nan)
    made.append(replace(oqmd, stress=unknown, relaxation_step=steps, relaxation_number=stages))
    make_store(path, made)
    return path


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes


@dataclass(frozen=True)
class Served:
    """A server that runs, and how to ask it exactly what is to be asked."""

    explorer: Explorer

    @property
    def url(self) -> str:
        return self.explorer.url

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.explorer.port}"

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.explorer.port, timeout=WAIT)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        finally:
            connection.close()


@contextmanager
def serving(address, **options):
    explorer = Explorer(str(address), port=0, **options)
    thread = threading.Thread(target=explorer.run, daemon=True)
    thread.start()
    try:
        yield Served(explorer)
    finally:
        explorer.stop()
        thread.join(WAIT)
        assert not thread.is_alive(), "the server does not stop"
