"""The raw manifest and its journal: what sources believe of a folder of raw files."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajmill import raw
from trajmill.errors import SourceError
from trajmill.raw import JOURNAL, MANIFEST, Journal, RawFile, RawManifest


def a_file(root, path="pbe/a.json.bz2", content=b"BZh", **changes):
    """Put a file into the folder; return its entry."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    status = target.stat()
    fields = {
        "path": path,
        "uri": f"https://example.org/{path}",
        "remote": {"size": len(content), "etag": None},
        "modified": "2025-07-02T10:10:00",
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": hashlib.sha256(content).hexdigest(),
        "fetched_at": "2026-01-01T00:00:00+00:00",
    }
    return RawFile(**fields | changes)


def save(root, *files, **changes):
    manifest = RawManifest(source="alexandria", layout="old", files={f.path: f for f in files}, **changes)
    manifest.save(root)
    return manifest


text = st.text(max_size=20)
plain = st.recursive(st.none() | st.booleans() | st.integers() | text, lambda x: st.lists(x) | st.dictionaries(text, x))
places = text.filter(raw.is_place)
entries = st.builds(
    RawFile,
    path=places,
    uri=text,
    remote=st.dictionaries(text, plain, max_size=3),
    modified=st.none() | text,
    size=st.integers(0, 1 << 50),
    mtime_ns=st.integers(0, 1 << 62),
    sha256=text,
    fetched_at=text,
    part_of=text,
    vanished=st.booleans(),
    left_out=st.dictionaries(text, st.integers(0, 1 << 40), max_size=3),
)


@settings(max_examples=25)
@given(st.lists(entries, max_size=4), st.dictionaries(text, text), st.dictionaries(places, text))
def test_a_manifest_comes_back_as_it_was(tmp_path_factory, files, version, dropped):
    root = tmp_path_factory.mktemp("raw")
    files = {file.path: file for file in files}
    manifest = RawManifest(source="mp", layout="delta", version=version, files=files, dropped=dropped)
    (root / JOURNAL).touch()
    manifest.save(root)
    assert RawManifest.load(root) == manifest
    assert [p.name for p in root.iterdir()] == [MANIFEST]


@settings(max_examples=25)
@given(st.lists(entries, min_size=1, max_size=5), st.integers(0, 400))
def test_a_journal_comes_back_as_it_was_but_for_a_line_that_was_cut_off(tmp_path_factory, files, cut):
    root = tmp_path_factory.mktemp("raw")
    journal = Journal(root)
    for file in files[:-1]:
        journal.add(file)
    before = (root / JOURNAL).stat().st_size if files[:-1] else 0
    journal.add(files[-1])
    assert Journal(root).read() == {file.path: file for file in files}
    os.truncate(root / JOURNAL, before + min(cut, (root / JOURNAL).stat().st_size - before - 3))
    assert journal.read() == {file.path: file for file in files[:-1]}
    journal.add(files[-1])
    assert journal.read() == {file.path: file for file in files}


@pytest.mark.parametrize("junk", [b"\xff\xfe\x00", b"null\n[1]\n3\n{}\n", b'{"path": "a"}\n', b'"x"', b'{"size": '])
def test_a_journal_s_junk_is_passed_over(tmp_path, junk):
    entry = a_file(tmp_path)
    Journal(tmp_path).add(entry)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(junk)
    Journal(tmp_path).add(dataclasses.replace(entry, path="b"))
    assert set(Journal(tmp_path).read()) == {entry.path, "b"}


def test_no_folder_is_no_manifest_and_no_journal(tmp_path):
    assert RawManifest.load(tmp_path / "nowhere") is None
    assert Journal(tmp_path / "nowhere").read() == {}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b"\xff\xfe",
        b'{"trajmill-raw": 1}',
        b'{"trajmill-raw": 1, "files": []}',
        b'{"trajmill-raw": 1, "files": [{}], "source": "mp"}',
        b'{"trajmill-raw": 1, "files": [3], "source": "mp"}',
        b'{"trajmill-raw": 1, "files": [], "source": "mp", "more": 1}',
    ],
)
def test_a_damaged_manifest_is_an_error(tmp_path, damage):
    (tmp_path / MANIFEST).write_bytes(damage)
    with pytest.raises(SourceError, match=r"no raw manifest .*; remove it and fetch again"):
        RawManifest.load(tmp_path)


def test_half_a_manifest_is_an_error(tmp_path):
    save(tmp_path, a_file(tmp_path))
    content = (tmp_path / MANIFEST).read_bytes()
    for length in range(0, len(content), 50):
        (tmp_path / MANIFEST).write_bytes(content[:length])
        with pytest.raises(SourceError):
            RawManifest.load(tmp_path)


def test_a_manifest_of_another_layout_number_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text('{"trajmill-raw": 2}')
    with pytest.raises(SourceError, match="written by another version of trajmill; fetch into another folder"):
        RawManifest.load(tmp_path)


def test_a_manifest_names_all_a_reader_needs(tmp_path):
    save(tmp_path, a_file(tmp_path), version={"pbe": "2025.07.02"})
    content = json.loads((tmp_path / MANIFEST).read_text())
    [file] = content["files"]
    assert content["version"] == {"pbe": "2025.07.02"}
    assert {"uri", "remote", "modified", "size", "sha256", "fetched_at"} <= set(file)


def test_the_digest_is_of_content_and_not_of_when_and_where(tmp_path):
    one = a_file(tmp_path)
    other = dataclasses.replace(one, uri="x", fetched_at="y", mtime_ns=0, remote={}, modified=None)
    digest = RawManifest(source="mp", files={"a": one}).digest
    assert RawManifest(source="mp", files={"a": other}, version={"x": "y"}).digest == digest
    assert RawManifest(source="mp", files={"b": one}).digest != digest
    assert RawManifest(source="mp", files={"a": dataclasses.replace(one, sha256="0")}).digest != digest


def test_current_are_the_files_the_manifest_names(tmp_path):
    named, other = a_file(tmp_path, "a"), a_file(tmp_path, "b")
    found = [tmp_path / "b", tmp_path / "a"]
    assert raw.current(tmp_path, found) == [tmp_path / "a", tmp_path / "b"]
    save(tmp_path, named, dropped={other.path: "superseded"})
    assert raw.current(tmp_path, found) == [tmp_path / "a"]
    Journal(tmp_path).add(other)  # the next fetch has begun
    assert raw.current(tmp_path, found) == [tmp_path / "a"]


def test_a_first_fetch_that_is_not_complete_is_not_read(tmp_path):
    Journal(tmp_path).add(a_file(tmp_path))
    with pytest.raises(SourceError, match="the first fetch into this folder is not complete; run it again"):
        raw.current(tmp_path, [])


def test_an_entry_is_of_the_file_that_was_fetched_and_of_no_other(tmp_path):
    known = a_file(tmp_path)
    path = tmp_path / known.path
    assert raw.entry(tmp_path, path) is None
    save(tmp_path, known)
    assert raw.entry(tmp_path, path) == known
    assert raw.entry(tmp_path, tmp_path / "other") is None
    os.utime(path, ns=(0, known.mtime_ns + 1))  # as after copying the folder: the content tells
    assert raw.entry(tmp_path, path) == dataclasses.replace(known, mtime_ns=known.mtime_ns + 1)
    path.write_bytes(b"BZx")
    os.utime(path, ns=(0, known.mtime_ns + 1))
    assert raw.entry(tmp_path, path) is None
    path.write_bytes(b"BZh")
    os.utime(path, ns=(0, known.mtime_ns))
    assert raw.entry(tmp_path, path) == known
    path.write_bytes(b"BZh and more")
    os.utime(path, ns=(0, known.mtime_ns))
    assert raw.entry(tmp_path, path) is None
    path.unlink()
    assert raw.entry(tmp_path, path) is None


def test_what_an_unfinished_fetch_has_replaced_is_known_too(tmp_path):
    save(tmp_path, a_file(tmp_path))
    newer = a_file(tmp_path, content=b"BZh and more", modified="2026-01-01T00:00:00")
    assert raw.entry(tmp_path, tmp_path / newer.path) is None
    Journal(tmp_path).add(newer)
    assert raw.entry(tmp_path, tmp_path / newer.path) == newer


@pytest.mark.parametrize("path", ["../victim", "/victim", MANIFEST])
def test_a_manifest_that_names_places_outside_is_refused(tmp_path, path):
    save(tmp_path, dropped={path: "pruned"})
    with pytest.raises(SourceError, match="which is no place in its folder"):
        RawManifest.load(tmp_path)


def test_an_unreadable_manifest_is_no_missing_one(tmp_path):
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        RawManifest.load(tmp_path)


def test_the_recorded_digest_is_used_while_the_file_is_the_one_that_was_fetched(tmp_path, monkeypatch):
    known = a_file(tmp_path)
    path = tmp_path / known.path
    save(tmp_path, known)
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **more: opened.append(self) or real(self, *args, **more))
    assert raw.sha256(path, tmp_path) == known.sha256
    assert path not in opened
    path.write_bytes(b"BZx")
    assert raw.sha256(path, tmp_path) == hashlib.sha256(b"BZx").hexdigest() != known.sha256
    assert path in opened
    assert raw.sha256(path) == raw.sha256(path, tmp_path)


def test_a_manifest_that_was_replaced_is_read_anew(tmp_path):
    save(tmp_path, a_file(tmp_path))
    assert RawManifest.load(tmp_path).version == {}
    save(tmp_path, a_file(tmp_path), version={"dump": "1.10"})
    assert RawManifest.load(tmp_path).version == {"dump": "1.10"}
