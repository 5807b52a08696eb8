"""Stores: where committed frames live. An address says which kind it is: a folder, `s3://...`, `postgresql://...`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from trajmill.storage import as_path, cache_folder
from trajmill.uris import without_password

if TYPE_CHECKING:
    from trajmill.stores.base import Store

POSTGRES = ("postgresql://", "postgres://")
"""How the address of a database starts."""

WORK = "_work"
"""Folder in a store's folder for what sources prepare; Delta and its readers pass over it."""


def open_store(address: str | Path, *, create: bool = False, version: int | None = None) -> Store:
    """Open a store.

    Args:
        address: `postgresql://user@host:port/database?schema=name`, or that of a Delta Lake table: a folder, or
            `s3://bucket/prefix`.
        create: make an empty store where there is none.
        version: version to read; None is the newest.

    Raises:
        StoreError: no store there, or one that this version of trajmill cannot read.
        MissingExtraError: a driver is not installed.
    """
    address = str(address)
    if address.startswith(POSTGRES):
        from trajmill.stores.postgres import PostgresStore

        return PostgresStore(address, create=create, version=version)
    from trajmill.stores.delta import DeltaStore

    return DeltaStore(address, create=create, version=version)


def is_store(address: str | Path) -> bool:
    """Tell an address of a store from that of a release."""
    return str(address).startswith(POSTGRES) or (as_path(address) / "_delta_log").is_dir()


def shown(address: str | Path) -> str:
    """Return an address as it may be shown: no user, no password, no options."""
    address = str(address)
    return without_password(address).partition("?")[0] if "://" in address else address


def work_folder(address: str | Path) -> Path:
    """Return where sources prepare what a build into this store needs, unless the recipe says where (`store.work`).

    In the store's folder; for a store that is not on this machine, a folder of the user's cache of its own.
    """
    if "://" not in str(address):
        return Path(address) / WORK
    return cache_folder() / hashlib.sha256(without_password(str(address)).encode()).hexdigest()[:16]
