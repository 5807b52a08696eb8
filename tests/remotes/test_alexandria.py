"""Alexandria's pages in both layouts, and the folder that is fetched from them read by its source."""

import os
import shutil
from pathlib import Path

import pytest

from servers.faulty import autoindex, serve
from trajmill.errors import RemoteContentError, RemoteNotFoundError
from trajmill.fetcher import fetch
from trajmill.raw import RawManifest, entry
from trajmill.recipe import Recipe
from trajmill.remotes import transfer
from trajmill.sources import open_sources

DATA = Path(__file__).parents[1] / "data" / "alexandria" / "data"
OLD = {
    "pbe": ["pbe/geo_opt_paths/alex_go_aaa_000.json.bz2", "pbe/geo_opt_paths/alex_go_aaa_001.json.bz2"],
    "pbesol": ["pbesol/geo_opt_paths/alex_ps_go_000.json.bz2"],
}
WHEN = 1751451000  # 2025-07-02T10:10:00Z


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(transfer, "BACKOFF", 0.01)


@pytest.fixture
def upstream(tmp_path):
    folder = tmp_path / "upstream"
    folder.mkdir()
    return folder


@pytest.fixture
def server(upstream):
    with serve(upstream) as server:
        yield server


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def publish(upstream, source, name, when=WHEN):
    """Put a sample file upstream."""
    target = upstream / "data" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(DATA / source, target)
    os.utime(target, (when, when))


def old_layout(upstream):
    for name in [name for names in OLD.values() for name in names]:
        publish(upstream, name, name)
    for name in ("pbe", "pbesol"):
        shutil.copyfile(DATA / name / "geo_opt_paths" / "index.html", upstream / "data" / name / "index.html")


def new_layout(upstream):
    """Not every date has every set, and not every folder is a date."""
    pbe, pbesol = OLD["pbe"], OLD["pbesol"][0]
    publish(upstream, pbe[0], "geo_opt_paths/2024.05.24/pbe/pbe_0000.json.bz2", WHEN - 86_400)
    publish(upstream, pbesol, "geo_opt_paths/2024.05.24/pbesol/ps_0000.json.bz2", WHEN - 86_400)
    publish(upstream, pbesol, "geo_opt_paths/2023.12.31/pbesol/ps_0000.json.bz2", WHEN - 86_400)
    for number, source in enumerate(pbe):
        publish(upstream, source, f"geo_opt_paths/2025.07.02/pbe/pbe_000{number}.json.bz2")
    publish(upstream, pbe[1], "geo_opt_paths/2025.07.02/pbe_2d/2d_0000.json.bz2")
    publish(upstream, pbe[0], "geo_opt_paths/2025.07.02/pbe_1d/1d_0000.json.bz2")
    for trap in ("latest", "2025.07.02.bak", "9999", "2025.7.2", "2025-08-01"):
        publish(upstream, pbesol, f"geo_opt_paths/{trap}/pbe/trap.json.bz2")
        publish(upstream, pbesol, f"geo_opt_paths/{trap}/pbesol/trap.json.bz2")
    publish(upstream, pbe[0], "geo_opt_paths/2026.01.01/scan/scan_0000.json.bz2")
    (upstream / "data" / "geo_opt_paths" / "README.txt").write_text("about")
    (upstream / "data" / "geo_opt_paths" / "2025.07.02" / "pbe" / "md5sums.txt").write_text("sums")


def get(server, raw, *, prune=False, **options):
    recipe = {"retries": 2, "timeout": 2.0, "alexandria": {"url": f"{server.url}data", **options}}
    return fetch("alexandria", raw, Recipe.model_validate({"fetch": recipe}), prune=prune)


def records(folder):
    [source] = open_sources(Recipe.model_validate({"alexandria": {"path": folder}}))
    return {asset.name: (list(source.read(asset)), asset.modified) for asset in source.assets()}


def test_the_old_layout_gives_the_files_that_are_there(server, upstream, raw):
    old_layout(upstream)
    summary = get(server, raw, layout="old")
    assert summary.new == OLD["pbe"] + OLD["pbesol"]
    assert summary.version == {}
    for name in summary.new:
        assert (raw / name).read_bytes() == (DATA / name).read_bytes()
        known = entry(raw, raw / name)
        assert (known.modified, known.part_of) == ("2025-07-02T10:10:00", name.partition("/")[0])


def test_what_was_fetched_reads_as_what_was_published(server, upstream, raw):
    old_layout(upstream)
    get(server, raw, layout="old")
    fetched, original = records(raw), records(DATA)
    assert set(fetched) == set(original)
    for name, (found, modified) in fetched.items():
        assert modified == "2025-07-02T10:10:00"
        assert len(found) == len(original[name][0])
        for one, other in zip(found, original[name][0], strict=True):
            assert one.n_frames == other.n_frames
            assert [r.detail for r in one.rejections] == [r.detail for r in other.rejections]
    assert any(record.n_frames for found, _ in fetched.values() for record in found)


def test_the_new_layout_takes_the_newest_date_of_each_set(server, upstream, raw):
    new_layout(upstream)
    summary = get(server, raw)
    assert summary.version == {"pbe": "2025.07.02", "pbesol": "2024.05.24"}
    assert summary.new == [
        "geo_opt_paths/2025.07.02/pbe/pbe_0000.json.bz2",
        "geo_opt_paths/2025.07.02/pbe/pbe_0001.json.bz2",
        "geo_opt_paths/2024.05.24/pbesol/ps_0000.json.bz2",
    ]
    files = RawManifest.load(raw).files
    assert {file.part_of for file in files.values()} == {"pbe", "pbesol"}
    assert files[summary.new[2]].modified == "2025-07-01T10:10:00"
    assert len(records(raw)) == 3


@pytest.mark.parametrize("sets", [["pbe_2d"], ["pbe_1d", "pbe_2d"], ["pbesol", "pbe_2d", "pbe"]])
def test_only_the_sets_that_are_wanted(server, upstream, raw, sets):
    new_layout(upstream)
    summary = get(server, raw, sets=sets)
    assert set(summary.version) == set(sets)
    assert {name.split("/")[2] for name in summary.new} == set(sets)


def test_sets_can_be_given_up_and_taken_up(server, upstream, raw):
    """The files of a set that is no longer asked for are kept, also when told to prune, and not fetched again."""
    new_layout(upstream)
    get(server, raw, sets=["pbe", "pbesol"])
    summary = get(server, raw, sets=["pbe"], prune=True)
    assert summary.vanished == summary.pruned == []
    assert summary.unasked == ["geo_opt_paths/2024.05.24/pbesol/ps_0000.json.bz2"]
    server.log.clear()
    assert not get(server, raw, sets=["pbe", "pbesol"]).vanished
    assert not server.asked(".json.bz2")


@pytest.mark.parametrize("layout", ["old", "new"])
def test_rounded_sizes_will_do(server, upstream, raw, layout):
    """Then the length the server announces is what counts, and the listing's figure is for planning."""
    (old_layout if layout == "old" else new_layout)(upstream)
    server.exact_sizes = False
    name = OLD["pbe"][0].rpartition("/")[2] if layout == "old" else "2025.07.02/pbe/pbe_0000.json.bz2"
    server.plan.arrange(name, "cut off", "reset")
    summary = get(server, raw, layout=layout)
    path = next(path for path in summary.new if path.endswith(name))
    assert (raw / path).read_bytes() == (DATA / OLD["pbe"][0]).read_bytes()
    known = entry(raw, raw / path)
    assert known.remote["size"] is None
    assert abs(known.remote["about"] - known.size) <= 512
    assert abs(summary.n_bytes - sum(f.size for f in RawManifest.load(raw).files.values())) < 3 * 513
    assert get(server, raw, layout=layout).unchanged == summary.new


def test_a_listing_that_changes_from_exact_to_rounded_sizes_is_a_change(server, upstream, raw):
    """Nothing else tells whether the file is the same; it is fetched again rather than believed."""
    old_layout(upstream)
    get(server, raw, layout="old")
    server.exact_sizes = False
    assert len(get(server, raw, layout="old").changed) == 3


def test_a_page_without_files(server, upstream, raw):
    (upstream / "data" / "pbe" / "geo_opt_paths").mkdir(parents=True)
    with pytest.raises(RemoteNotFoundError, match=r"pbe/geo_opt_paths/: lists no \*.json.bz2 files; see fetch"):
        get(server, raw, layout="old")


def test_a_set_that_is_nowhere(server, upstream, raw):
    publish(upstream, OLD["pbe"][0], "geo_opt_paths/2025.07.02/pbe/pbe_0000.json.bz2")
    with pytest.raises(RemoteNotFoundError, match=r"no folder pbesol below any date; see fetch.alexandria"):
        get(server, raw)


def test_a_listing_that_was_cut_off_loses_no_files(server, upstream, raw):
    old_layout(upstream)
    get(server, raw, layout="old")
    whole = autoindex(upstream / "data" / "pbe" / "geo_opt_paths", "/data/pbe/geo_opt_paths/")
    server.pages["/data/pbe/geo_opt_paths/"] = whole[: whole.index(b"aaa_001") - 9]
    with pytest.raises(RemoteContentError, match="the page is cut off"):
        get(server, raw, layout="old")
    assert len(RawManifest.load(raw).files) == 3


def test_a_listing_that_moved(server, upstream, raw):
    old_layout(upstream)
    (upstream / "data").rename(upstream / "moved")
    (upstream / "data" / "pbe" / "geo_opt_paths").mkdir(parents=True)
    server.elsewhere = f"{server.url}moved/pbe/geo_opt_paths/"
    server.plan.arrange("/data/pbe/geo_opt_paths/", "elsewhere")
    assert get(server, raw, layout="old", sets=["pbe"]).new == OLD["pbe"]
    assert entry(raw, raw / OLD["pbe"][0]).uri == f"{server.url}moved/{OLD['pbe'][0]}"


@pytest.mark.parametrize("layout", ["old", "new"])
def test_a_password_of_the_address_is_used_and_neither_shown_nor_kept(upstream, server, raw, layout):
    server.url = server.url.replace("//", "//me:S3CRET@")
    (old_layout if layout == "old" else new_layout)(upstream)
    assert get(server, raw, layout=layout).new
    assert {request.headers["authorization"] for request in server.log} == {"Basic bWU6UzNDUkVU"}
    kept = [path for path in raw.rglob("*.json*") if path.suffix != ".bz2"]
    assert kept
    assert not [path for path in kept if "S3CRET" in path.read_text(encoding="utf-8")]
    shutil.rmtree(upstream / "data" / "geo_opt_paths" / "2025.07.02" / "pbe_1d", ignore_errors=True)
    with pytest.raises(RemoteNotFoundError, match=r"^http://127.0.0.1:\d+/") as caught:
        get(server, raw, layout=layout, sets=["pbe_1d"])
    assert "S3CRET" not in str(caught.value)
    (upstream / "data" / "pbe_1d" / "geo_opt_paths").mkdir(parents=True)
    (upstream / "data" / "geo_opt_paths" / "2025.07.02" / "pbe_1d").mkdir(parents=True)
    with pytest.raises(RemoteNotFoundError, match=r"^http://127.0.0.1:\d+/.*lists no"):
        get(server, raw, layout=layout, sets=["pbe_1d"])
