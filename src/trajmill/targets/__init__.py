"""Targets: the files that other programs read. `TARGETS` is the table of them."""

from __future__ import annotations

from trajmill.targets.aselmdb import ASELMDB, MACE_LMDB
from trajmill.targets.atompack import ATOMPACK
from trajmill.targets.cif import CIF
from trajmill.targets.extxyz import EXTXYZ
from trajmill.targets.lemat_traj import LEMAT_TRAJ
from trajmill.targets.mace_hdf5 import MACE_HDF5

TARGETS = {target.name: target for target in (EXTXYZ, ASELMDB, MACE_LMDB, MACE_HDF5, ATOMPACK, LEMAT_TRAJ, CIF)}
