import bz2
import csv
import json
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from making import DATA
from sources.conformance import assert_equal, check_source
from trajmill import recipe
from trajmill.curation import curate
from trajmill.errors import SourceError
from trajmill.recipe import load
from trajmill.sources.alexandria import Alexandria, split
from trajmill.units import KBAR_PER_EV_PER_A3

ROOT = DATA / "alexandria"
REAL_STEP = json.loads((ROOT / "real_step_agm005676148.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return check_source(Alexandria(ROOT), tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def trajectories(found):
    return {t.trajectory_id: t for records in found.values() for r in records for t in r.trajectories}


def raw(path):
    return json.loads(bz2.decompress(path.read_bytes()).decode())


def test_every_step_of_the_samples_is_read(found, trajectories):
    for path in ROOT.rglob("*.json.bz2"):
        functional = "pbesol" if "pbesol" in path.parts else "pbe"
        runs_of = raw(path)
        assert len(found[f"alexandria/{path.relative_to(ROOT)}"]) == len(runs_of)
        for key, runs in runs_of.items():
            t = trajectories[f"{key}-{functional}"]
            assert t.relaxation_number.tolist() == [k for k, run in enumerate(runs) for _ in run["steps"]]
            assert t.relaxation_step.tolist() == list(range(len(t)))
            assert t.encut.tolist() == [run["ENMAX"] for run in runs for _ in run["steps"]]


def test_frames_hold_what_the_file_says(trajectories):
    from pymatgen.core import Structure

    for key, runs in list(raw(ROOT / "data/pbe/geo_opt_paths/alex_go_aaa_001.json.bz2").items())[:4]:
        t = trajectories[f"{key}-pbe"]
        for i, step in enumerate(step for run in runs for step in run["steps"]):
            structure = Structure.from_dict(step["structure"])
            np.testing.assert_array_equal(t.lattice[i], structure.lattice.matrix)
            np.testing.assert_allclose(t.positions[i], structure.cart_coords, atol=1e-12)
            assert t.symbols == [site.specie.symbol for site in structure]
            assert t.energy[i] == step["energy"]
            np.testing.assert_array_equal(t.forces[i], step["forces"])
            np.testing.assert_array_equal(t.stress[i], -np.array(step["stress"]) / KBAR_PER_EV_PER_A3)


OUTCOMES = {
    # id: frames in, frames kept (default recipe), rejections that are no duplicate frame, steps without stress
    "agm003284733-pbe": (20, 17, {15: "force on atom 1 is missing or not finite"}, 0),
    "agm003228921-pbe": (20, 18, {7: "energy is missing or not finite"}, 0),
    "agm003287426-pbe": (38, 37, {}, 1),
    "agm003219169-pbe": (12, 11, {1: "forces: row 0 has 1 components, expected 3"}, 0),
    "agm003221388-pbesol": (13, 12, {}, 0),
    "agm003204132-pbe": (28, 26, {27: "forces are missing"}, 0),
    "agm003287146-pbe": (20, 20, {}, 11),
    "agm003201826-pbe": (12, 9, dict.fromkeys((0, 1), "eV/atom from the final frame"), 0),
    "agm003247448-pbe": (15, 12, {0: "+3.176 eV/atom from the final frame, allowed -0.5 to +1.0"}, 0),
    "agm003227045-pbe": (16, 14, {0: "+2.025 eV/atom from the final frame, allowed -0.5 to +1.0"}, 0),
    "agm003249206-pbe": (9, 0, {None: "contains Yb"}, 0),
    "agm003249206-pbesol": (11, 0, {None: "contains Yb"}, 0),
    "agm003244561-pbe": (3, 0, {None: "contains Yb"}, 0),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_planted_cases(name, trajectories):
    frames, kept, rejected, without_stress = OUTCOMES[name]
    t = trajectories[name]
    rest, rejections = curate([t], load().rules)[0]
    assert len(t) == frames
    assert (len(rest) if rest else 0) == kept
    others = {r.relaxation_step: r.detail for r in rejections if r.rejected_by != "duplicate_frames"}
    assert others.keys() == rejected.keys()
    assert all(text in others[step] for step, text in rejected.items())
    assert np.isnan(t.stress).all(axis=(1, 2)).sum() == without_stress


def test_every_planted_case_has_an_outcome(trajectories):
    with (ROOT / "CASES.tsv").open() as file:
        cases = list(csv.DictReader(file, delimiter="\t"))
    both = {c["where"] for c in cases if c["case"] == "id in both functionals"}
    planted = {c["where"].split()[0] for c in cases} - both
    assert planted <= {name.partition("-")[0] for name in OUTCOMES}


def test_an_id_in_both_functionals_is_two_trajectories(trajectories):
    pbe, pbesol = (trajectories[f"agm003201826-{f}"] for f in ("pbe", "pbesol"))
    assert pbe.immutable_id == pbesol.immutable_id == "agm003201826"
    assert (pbe.functional, pbesol.functional) == ("pbe", "pbesol")
    assert len(pbe) != len(pbesol)


def test_an_unusable_end_is_recorded(trajectories):
    rest, _ = curate([trajectories["agm003204132-pbe"]], load().rules)[0]
    assert rest.notes == ("ends at step 26: step 27 was rejected by targets",)


def test_an_empty_run_keeps_its_number(trajectories):
    of_key = [t for t in trajectories.values() if t.task_id == "agm003221388"]
    assert any(0 not in t.relaxation_number for t in of_key)


def test_dates_come_from_the_listing(found):
    dates = {a.path.name: a.modified for a in Alexandria(ROOT).assets()}
    assert dates["alex_go_aaa_001.json.bz2"] == "2025-07-02T14:05:00"
    records = found["alexandria/data/pbe/geo_opt_paths/alex_go_aaa_000.json.bz2"]
    assert {t.last_modified for r in records for t in r.trajectories} == {"2024-03-21T09:20:00"}


def test_dates_of_a_listing_with_cut_names(tmp_path):
    name = "alex_go_with_a_very_long_name_that_nginx_cuts_000.json.bz2"
    write(tmp_path, f"pbe/{name}", {})
    (tmp_path / "pbe/index.html").write_text(
        f'<a href="{name}">alex_go_with_a_very_l..&gt;</a>   01-Feb-2025 03:04   12M\n'
    )
    assert Alexandria(tmp_path).assets()[0].modified == "2025-02-01T03:04:00"


# --- shards made here


def step(energy=-7.0, symbols=("Nb", "O"), **changes):
    structure = {
        "@class": "Structure",
        "lattice": {"matrix": [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]]},
        "sites": [
            {"species": [{"element": s, "occu": 1}], "abc": [0.5 * k, 0.5 * k, 0.5 * k], "label": s}
            for k, s in enumerate(symbols)
        ],
    }
    forces, stress = [[0.0, 0.0, 0.1]] * len(symbols), [[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]]
    return {"structure": structure, "energy": energy, "forces": forces, "stress": stress} | changes


def run(*steps, **changes):
    return {"kpoints": [2, 2, 2], "PREC": "high", "ENMAX": 520.0, "ENAUG": 1000.0, "steps": list(steps)} | changes


GOOD = [run(step(-7.0), step(-7.1))]


def write(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(bz2.compress(text.encode()))
    return path


def read(root, **options):
    source = Alexandria(root, recipe.Alexandria(**options))
    return [record for asset in source.assets() for record in source.read(asset)]


def problems(records):
    return [(r.task_id, r.rejected_by, r.detail, r.n_frames) for record in records for r in record.rejections]


def ids(records):
    return [t.trajectory_id for record in records for t in record.trajectories]


def test_a_site_without_fractional_coordinates_is_read_by_its_cartesian_ones(tmp_path):
    without = step(-7.1)
    for site in without["structure"]["sites"]:
        site["xyz"] = [4.0 * x for x in site.pop("abc")]
    write(tmp_path, "pbe_0000.json.bz2", {"agm000000001": [run(step(-7.0), without)]})
    [record] = read(tmp_path)
    [t] = record.trajectories
    assert t.faults == {}
    np.testing.assert_array_equal(t.positions[0], t.positions[1])


@pytest.mark.parametrize(
    ("path", "functional"),
    [
        ("data/pbe/geo_opt_paths/alex_go_aaa_000.json.bz2", "pbe"),
        ("data/pbesol/geo_opt_paths/alex_ps_go_000.json.bz2", "pbesol"),
        ("data/pbe_2d/geo_opt_paths/a.json.bz2", "pbe"),
        ("data/geo_opt_paths/2025.07.02/pbe/pbe_0000.json.bz2", "pbe"),
        ("data/geo_opt_paths/2025.07.02/pbe_1d/x.json.bz2", "pbe"),
        ("data/geo_opt_paths/2024.05.24/pbesol/pbesol_0000.json.bz2", "pbesol"),
        ("pbe/backup/pbesol/a.json.bz2", "pbesol"),  # what is nearest to the file decides
        ("pbesol_0000.json.bz2", "pbesol"),
        ("pbe_0000.json.bz2", "pbe"),
        ("data/scan/geo_opt_paths/a.json.bz2", None),
        ("data/pberev/a.json.bz2", None),
    ],
)
def test_functional_from_the_path(tmp_path, path, functional):
    write(tmp_path, path, {"agm000000001": GOOD})
    (record,) = read(tmp_path)
    (t,) = record.trajectories
    assert t.functional == functional
    assert t.trajectory_id == f"agm000000001-{functional or 'unknown'}"
    if functional is None:
        rest, rejections = curate([t], load().rules)[0]
        assert rest is None
        assert [(r.rejected_by, r.detail, r.n_frames) for r in rejections] == [
            ("unsupported_functional", "no functional in the file's path", 2)
        ]


@pytest.mark.parametrize(
    ("functional", "settings", "symbols", "expected"),
    [
        ("pbe", "mp", ("Fe", "O"), ("GGA+U", {"Fe": 5.3}, ("Fe_pv", "O"))),
        ("pbe", "mp", ("Fe", "S"), ("GGA", {}, ("Fe_pv", "S"))),
        ("pbe", "mp", ("Mg", "O"), ("GGA", {}, ("Mg_pv", "O"))),
        ("pbe", "mp", ("Cf", "O"), ("GGA", {}, None)),
        ("pbe", "unknown", ("Fe", "O"), (None, None, None)),
        ("pbesol", "mp", ("Fe", "O"), ("PBEsol", None, None)),
    ],
)
def test_inferred_settings(tmp_path, functional, settings, symbols, expected):
    write(tmp_path, f"{functional}/a.json.bz2", {"agm000000001": [run(step(symbols=symbols))]})
    (t,) = read(tmp_path, settings=settings)[0].trajectories
    assert (t.run_type, t.hubbard_u, t.potentials) == expected


def good_shard():
    return json.dumps({f"agm00000000{k}": GOOD for k in range(4)})


def changed(**fields):
    """The shard with fields of the second step of the third id replaced."""
    shard = json.loads(good_shard())
    shard["agm000000002"][0]["steps"][1].update(fields)
    return json.dumps(shard)


@pytest.mark.parametrize(
    ("text", "rejected"),
    [
        (changed(energy="none"), "energy: Expected `float | null`, got `str`"),
        (changed(energy=None), "energy is missing or not finite"),
        (changed(energy=float("nan")), "energy is missing or not finite"),
        (changed(energy=float("inf")), "energy is missing or not finite"),
        (changed(energy=-(10**400)), "energy"),
        (changed(forces=None), "forces are missing"),
        (changed(forces=[[0, 0, 0], [0, None, 0]]), "force on atom 1 is missing or not finite"),
        (changed(forces=[[0, 0, 0], [0, float("inf"), 0]]), "force on atom 1 is missing or not finite"),
        (changed(forces=[[0, 0, 0], [0]]), "forces: row 1 has 1 components, expected 3"),
        (changed(forces=[[0, 0, 0]]), "forces has shape (1, 3), expected (2, 3)"),
        (changed(forces=[[0, 0, 0], 3]), "forces: Expected `array`, got `int`"),
        (changed(structure=None), "no structure"),
        (changed(structure={"sites": []}), "structure: Object missing required field `lattice`"),
        (changed(structure=step(symbols=("Nb",))["structure"]), "1 sites, 2 before"),
        (changed(structure=step(symbols=("O", "Nb"))["structure"]), "other elements or order of sites than before"),
        (changed(structure=step(symbols=("Qq", "O"))["structure"]), "unknown elements Qq"),
        (changed(structure=step(symbols=())["structure"]), "no sites"),
        (changed(structure={**step()["structure"], "lattice": {"matrix": [[0.0] * 3] * 3}}), "0 A^3 per atom"),
        (changed(structure={**step()["structure"], "lattice": {"matrix": [[4.0, 0], [0, 4.0]]}}), "lattice"),
        (changed(structure={**step()["structure"], "lattice": {"matrix": [[float("nan")] * 3] * 3}}), "not finite"),
    ],
)
def test_a_bad_frame_costs_itself(tmp_path, text, rejected):
    write(tmp_path, "pbe/a.json.bz2", text)
    records = read(tmp_path)
    assert ids(records) == [f"agm00000000{k}-pbe" for k in range(4)]
    assert problems(records) == []
    left = [curate([t], load().rules)[0] for record in records for t in record.trajectories]
    assert [len(rest) for rest, _ in left] == [2, 2, 1, 2]
    (rejection,) = left[2][1]
    assert rejected in rejection.detail
    assert len(rejection.detail) < 200


@pytest.mark.parametrize(
    "stress",
    [None, [[1.0, 0, None], [0, 1, 0], [0, 0, 1]], [[1.0, 0], [0, 1]], "NaN", [[1.0, 5, 0], [0, 1, 0], [0, 0, 1]]],
)
def test_a_bad_stress_costs_the_label(tmp_path, stress):
    write(tmp_path, "pbe/a.json.bz2", changed(stress=stress))
    t = read(tmp_path)[2].trajectories[0]
    assert np.isnan(t.stress[1]).all()
    assert np.isfinite(t.stress[0]).all()
    assert curate([t], load().rules)[0] == (t, [])


@pytest.mark.parametrize("encut", [520, 520.0, None, "high", float("nan"), 10**400])
def test_the_cut_off_beside_a_bad_frame(tmp_path, encut):
    shard = {"agm000000001": [run(step(), step(energy="none"), ENMAX=encut)]}
    write(tmp_path, "pbe/a.json.bz2", shard)
    (t,) = read(tmp_path)[0].trajectories
    np.testing.assert_array_equal(t.encut, [encut if encut in (520, 520.0) else np.nan] * 2)
    assert np.isnan(t.energy).tolist() == [False, True]


@pytest.mark.parametrize(
    ("value", "rule", "detail", "n_frames"),
    [
        ("{}", "readable", "the record is no list of runs", None),
        ("[3]", "readable", "the record is no list of runs", None),
        ('"text"', "readable", "the record is no list of runs", None),
        ("null", "readable", "the record is no list of runs", None),
        ("[{", "readable", "Expecting property name enclosed in double quotes: line 1 column 3 (char 2)", None),
        ("", "readable", "Expecting value: line 1 column 1 (char 0)", None),
        ("[" * 100_000, "readable", "nested too deeply", None),
        ("[]", "targets", "no ionic steps", 0),
        ('[{"steps": []}]', "targets", "no ionic steps", 0),
        ('[{"steps": null}]', "targets", "no ionic steps", 0),
        ("[{}, {}]", "targets", "no ionic steps", 0),
    ],
)
def test_a_bad_record_costs_itself(tmp_path, value, rule, detail, n_frames):
    text = f'{{"agm000000001": {json.dumps(GOOD)}, "agm000000002": {value}, "agm000000003": {json.dumps(GOOD)}}}'
    write(tmp_path, "pbe/a.json.bz2", text)
    records = read(tmp_path)
    assert ids(records) == ["agm000000001-pbe", "agm000000003-pbe"]
    assert problems(records) == [("agm000000002", rule, detail, n_frames)]


@pytest.mark.parametrize("raw_step", [3, None, [], "step", {}])
def test_a_step_that_is_none(tmp_path, raw_step):
    write(tmp_path, "pbe/a.json.bz2", {"agm000000001": [run(step(), raw_step, step(-7.1))]})
    (record,) = read(tmp_path)
    assert record.n_frames == 3
    rest, rejections = curate([record.trajectories[0]], load().rules)[0]
    assert rest.relaxation_step.tolist() == [0, 2]
    assert [r.relaxation_step for r in rejections] == [1]


def test_the_real_malformed_step(tmp_path):
    write(tmp_path, "pbe/a.json.bz2", {"agm005676148": [run(REAL_STEP, step(symbols=("O",)))], "agm000000002": GOOD})
    records = read(tmp_path)
    t = records[0].trajectories[0]
    assert t.energy[0] == REAL_STEP["energy"]
    rejections = curate([t], load().rules)[0][1]
    assert rejections[0].detail.startswith("forces: row ")
    assert "has 1 components, expected 3" in rejections[0].detail
    assert ids(records)[1] == "agm000000002-pbe"


def test_nan_is_parsed_and_not_replaced(tmp_path):
    """As text, the NaN of the label "NaNbO3" and of a comment would be damaged too."""
    odd = step(float("nan"), symbols=("Na", "Nb", "O", "O", "O"))
    odd["structure"]["sites"][0]["label"] = "NaNbO3, NaN"
    write(tmp_path, "pbe/a.json.bz2", json.dumps({"agm000000001": [run(odd, step(symbols=odd_symbols()))]}))
    (t,) = read(tmp_path)[0].trajectories
    assert t.symbols == ["Na", "Nb", "O", "O", "O"]
    assert np.isnan(t.energy).tolist() == [True, False]
    assert np.isfinite(t.forces).all()


def odd_symbols():
    return ("Na", "Nb", "O", "O", "O")


def test_a_truncated_file_costs_its_last_id(tmp_path):
    shard = {f"agm{k:09}": [run(*(step(-7.0 - 0.001 * i - k) for i in range(60)))] for k in range(12)}
    path = write(tmp_path, "pbe/a.json.bz2", "")
    blocks = [bz2.compress(json.dumps(shard).encode()), bz2.compress(b" ")]
    path.write_bytes(blocks[0] + blocks[1][:-4])  # all of the JSON arrives, the file does not end
    records = read(tmp_path)
    assert len(ids(records)) == 11
    ((key, rule, detail, n_frames),) = problems(records)
    assert (key, rule, n_frames) == ("agm000000011", "readable", None)
    assert detail.startswith("damaged or truncated file: Compressed file ended before")


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"", "damaged or truncated file: Compressed file ended before"),
        (b"<html>404</html>", "damaged or truncated file: Invalid data stream"),
        (bz2.compress(b"<html>404</html>"), "no Alexandria ids in this file, it holds '<html>404</html>'"),
        (bz2.compress(b""), "no Alexandria ids in this file, it holds nothing"),
        (bz2.compress(b"[]"), "no Alexandria ids in this file, it holds '[]'"),
        (bz2.compress(b'{"mp-1": []}'), "no Alexandria ids in this file, it holds '{\"mp-1\": []}'"),
        (bz2.compress(good_shard().encode())[:-20], "damaged or truncated file: Compressed file ended before"),
        (bz2.compress(b"\xff" * 1000), "no Alexandria ids in this file, it holds '"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, detail):
    path = write(tmp_path, "pbe/a.json.bz2", "")
    path.write_bytes(content)
    write(tmp_path, "pbe/b.json.bz2", {"agm000000001": GOOD})
    records = read(tmp_path)
    assert ids(records) == ["agm000000001-pbe"]
    ((key, rule, found, n_frames),) = problems(records)
    assert (key, rule, n_frames) == (None, "readable", None)
    assert found.startswith(detail)
    assert records[0].n_frames == 0


@pytest.mark.parametrize("text", ["{}", " { } \n"])
def test_an_empty_object_is_no_fault(tmp_path, text):
    write(tmp_path, "pbe/a.json.bz2", text)
    assert read(tmp_path) == []


def test_a_record_cut_off_in_a_whole_file(tmp_path):
    write(tmp_path, "pbe/a.json.bz2", good_shard()[:-40])
    records = read(tmp_path)
    assert len(ids(records)) == 3
    assert problems(records) == [("agm000000003", "readable", "the file ends inside this record", None)]


def test_text_before_the_first_id(tmp_path):
    write(tmp_path, "pbe/a.json.bz2", "<p>" + good_shard())
    records = read(tmp_path)
    assert len(ids(records)) == 4
    assert problems(records)[0][2].startswith("unexpected text before the first id: '<p>{")


def test_nothing_there(tmp_path):
    with pytest.raises(SourceError, match=r"no \*.json.bz2 path files here; point alexandria.path at the folder"):
        Alexandria(tmp_path).assets()


def test_the_digest_changes_with_content_functional_and_date_only(tmp_path):
    def digest(root):
        source = Alexandria(root)
        (asset,) = source.assets()
        return source.raw_digest(asset)

    for name, content in {
        "a/pbe/x": GOOD,
        "elsewhere/pbe/x": GOOD,
        "c/pbesol/x": GOOD,
        "d/pbe/x": GOOD[:1] * 2,
    }.items():
        write(tmp_path, f"{name}.json.bz2", {"agm000000001": content})
    a, elsewhere, c, d = (digest(tmp_path / name) for name in ("a", "elsewhere", "c", "d"))
    assert a == elsewhere
    assert len({a, c, d}) == 3
    (tmp_path / "a/pbe/index.html").write_text('<a href="x.json.bz2">x.json.bz2</a>   01-Feb-2025 03:04   12\n')
    assert digest(tmp_path / "a") != a


# --- the splitter


def chunks(text, size):
    data = text.encode()
    return (data[i : i + size] for i in range(0, len(data), size))


SHARD = '{"agm000000001": [1], "agm000000002" :\n [{"steps": []}], "agm000000003": [],"agm000000004":["agm5"]}'


def test_chunk_borders():
    """Wherever a chunk ends, in a key, before its colon or within the JSON, the records are the same."""
    whole = list(split([SHARD.encode()]))
    assert [key for key, _, _ in whole] == [f"agm00000000{k}" for k in (1, 2, 3, 4)]
    assert [json.loads(text) for _, text, _ in whole] == [[1], [{"steps": []}], [], ["agm5"]]
    for size in range(1, 201):
        assert [(k, json.loads(t), e) for k, t, e in split(chunks(SHARD, size))] == [
            (k, json.loads(t), e) for k, t, e in whole
        ], size


def test_chunk_borders_of_a_damaged_file():
    text = SHARD[:-30]
    whole = list(split([text.encode()]))
    for size in range(1, 201):
        assert [(k, t.strip(), e) for k, t, e in split(chunks(text, size))] == [(k, t.strip(), e) for k, t, e in whole]


def test_the_splitter_holds_one_record():
    """200 records of 100 kB: chunks are asked for one by one, and memory stays at a few of them."""
    size, n, asked = 100_000, 200, 0

    def source():
        nonlocal asked
        for k in range(n):
            asked += 1
            yield b'%s"agm%09d": [%s]' % (b"{" if k == 0 else b", ", k, b" " * size)
        yield b"}"

    tracemalloc.start()
    for count, (_, text, error) in enumerate(split(source()), 1):
        assert (len(text) >= size, error) == (True, "")
        assert asked <= count + 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == n
    assert peak < 10 * size


JUNK = st.sampled_from(
    [
        "",
        "NaN",
        "Infinity",
        "-Infinity",
        "null",
        "1e999",
        "1e200",
        "9" * 400,
        '"',
        "[",
        "]",
        "{",
        "}",
        ",",
        "\\",
        "\x00",
        "é",
        "[[]]",
    ]
)


@given(st.integers(0, 1150), st.integers(0, 60), JUNK)
def test_damage_anywhere_in_a_record_costs_nothing_else(tmp_path_factory, place, length, junk):
    good = json.dumps(GOOD)
    text = good[:place] + junk + good[place + length :]
    root = tmp_path_factory.mktemp("fuzz")
    write(root, "pbe/a.json.bz2", f'{{"agm000000001": {good}, "agm000000002": {text}, "agm000000003": {good}}}')
    records = read(root)
    shutil.rmtree(root)
    assert len(records) == 3
    assert_equal(records[0].trajectories[0].forces, records[2].trajectories[0].forces)
    for t in records[1].trajectories:
        rest, rejections = curate([t], load().rules)[0]
        assert records[1].n_frames == (len(rest) if rest else 0) + sum(r.n_frames for r in rejections)


def test_a_file_that_cannot_be_read_is_no_damaged_file(tmp_path):
    """What the disk refuses says nothing about the records: the asset fails and is not committed as a rejection."""
    source = Alexandria(tmp_path)
    path = tmp_path / "pbe" / "a.json.bz2"
    path.parent.mkdir()
    path.write_bytes(bz2.compress(b"{}"))
    [asset] = source.assets()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(source.read(asset))
