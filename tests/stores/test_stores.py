"""Addresses: which kind of store they name, how they are shown, where sources prepare."""

from pathlib import Path

import pytest

from factories import make_store, make_trajectory
from trajmill.stores import is_store, open_store, shown, work_folder


def test_a_folder_is_a_store_when_it_holds_one(tmp_path):
    assert not is_store(tmp_path)
    make_store(tmp_path / "store", [make_trajectory()])
    assert is_store(tmp_path / "store")
    assert is_store(str(tmp_path / "store"))
    assert is_store("postgresql://host/database")
    assert open_store(tmp_path / "store").address == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Path("a/b@c:d"), "a/b@c:d"),
        ("postgresql://me:secret@host:5/db?schema=x&password=secret", "postgresql://host:5/db"),
        ("postgresql://me@host/db", "postgresql://host/db"),
    ],
)
def test_addresses_are_shown_without_what_is_secret(address, text):
    assert shown(address) == text


def test_sources_prepare_beside_the_store_or_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert work_folder(tmp_path / "store") == tmp_path / "store" / "_work"
    first = work_folder("postgresql://me:secret@host/db")
    assert first.parent == tmp_path / "trajmill"
    assert first == work_folder("postgresql://other:password@host/db")
    assert first != work_folder("postgresql://host/db?schema=x")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert work_folder("postgresql://host/db").parent == Path.home() / ".cache" / "trajmill"
