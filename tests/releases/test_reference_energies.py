from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from factories import make_trajectory
from trajmill.codec import encode
from trajmill.releases.reference_energies import ReferenceEnergies

E0 = {"Na": -1.25, "Cl": -2.5, "O": -4.0}


def rows(symbols, **fields):
    t = make_trajectory("mp-" + "".join(symbols), symbols=symbols, **fields)
    exact = np.full(len(t), sum(E0[s] for s in symbols))
    from dataclasses import replace

    return pa.Table.from_batches([encode([replace(t, energy=exact)])])


def test_exact_energies_give_exact_references():
    e0s = ReferenceEnergies()
    for symbols in (["Na"], ["Na", "Cl"], ["Na", "Na", "O"], ["Cl", "O", "O"]):
        e0s.add(rows(symbols))
    assert e0s.solve()["pbe"]["GGA"] == pytest.approx(E0)


def test_functionals_and_run_types_are_apart():
    e0s = ReferenceEnergies()
    e0s.add(pa.concat_tables([rows(["Na"]), rows(["Na", "O"], run_type="GGA+U"), rows(["Cl"], functional="scan")]))
    assert {f: set(r) for f, r in e0s.solve().items()} == {"pbe": {"GGA", "GGA+U"}, "scan": {"SCAN"}}


def test_undetermined_elements_share():
    e0s = ReferenceEnergies()
    e0s.add(rows(["Na", "Cl"]))
    assert e0s.solve()["pbe"]["GGA"] == pytest.approx({"Na": -1.875, "Cl": -1.875})  # least norm
