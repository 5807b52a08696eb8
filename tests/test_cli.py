from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib

import pytest

from making import DATA

MP = DATA / "mp/real"
ALEXANDRIA = DATA / "alexandria"
OQMD = DATA / "oqmd/qmdb__v1_6__112023.sql.gz"


def trajmill(*arguments, **options):
    command = [sys.executable, "-m", "trajmill.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The demo's build through the command line."""
    path = tmp_path_factory.mktemp("cli") / "store"
    result = trajmill(
        "build", "--mp", MP, "--alexandria", ALEXANDRIA, "--oqmd", OQMD, "--out", path, "--workers", 2,
        "--set", "mp.tasks_without_material=keep",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "assets built, 0 unchanged" in result.stdout
    return path


def numbers(text):
    return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*", text)]


def test_build_says_the_balance(tmp_path):
    result = trajmill("build", "--alexandria", ALEXANDRIA, "--out", tmp_path / "store", "--workers", 1)
    line = next(x for x in result.stdout.splitlines() if x.startswith("frames"))
    read, kept, rejected = numbers(line)
    assert read == kept + rejected == 657
    again = trajmill("build", "--alexandria", ALEXANDRIA, "--out", tmp_path / "store", "--workers", 1)
    assert "0 assets built, 3 unchanged" in again.stdout


def test_a_recipe_file_does_the_same_as_flags(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"[alexandria]\npath = '{ALEXANDRIA}'\n[store]\npath = '{tmp_path / 'store'}'\n[engine]\nworkers = 1\n"
    )
    assert "version 3; 3 assets built" in trajmill("build", recipe).stdout
    flags = trajmill("build", "--alexandria", ALEXANDRIA, "--out", tmp_path / "store")
    assert "0 assets built, 3 unchanged" in flags.stdout


def test_info(store):
    result = trajmill("info", store)
    assert result.returncode == 0
    assert result.stdout.count("ok: ") == 4
    for word in ("alexandria", "oqmd", "GGA+U", "r2SCAN", "task_type", "unlabelled input geometries"):
        assert word in result.stdout


def test_release_and_its_info(store, tmp_path):
    result = trajmill("release", store, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "compatible_pbe" in result.stdout
    info = trajmill("info", tmp_path / "out")
    assert info.returncode == 0
    assert "FAILED" not in info.stdout
    next((tmp_path / "out").glob("compatible_pbe/*.parquet")).unlink()
    damaged = trajmill("info", tmp_path / "out")
    assert damaged.returncode == 1
    assert "FAILED: compatible_pbe" in damaged.stdout


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "schema trajmill, stress in eV/A^3"),
        (["--schema", "lemat-traj"], "schema lemat-traj, stress in kBar"),
        (["--schema", "lemat-traj", "--stress", "ev"], "schema lemat-traj, stress in eV/A^3"),
        (["--stress", "kbar"], "schema trajmill, stress in kBar"),
        (["--version", "1"], "store version 1"),
        (["--set", "rules.primary_agreement.tolerance=0.001"], "primary_agreement (at release)"),
    ],
)
def test_release_options_act(store, tmp_path, flags, expected):
    assert trajmill("release", store, tmp_path / "out", *flags).returncode == 0
    assert expected in trajmill("info", tmp_path / "out").stdout


def test_why_did_it_go(store):
    result = trajmill("rejections", store, "--id", "agm003201826-pbe-0")
    assert "+3.177 eV/atom from the final frame" in result.stdout
    assert "1 of 1 rejections shown" in result.stdout
    assert "2 of" in trajmill("rejections", store, "--rule", "task_type", "--limit", 2).stdout


def test_recipe_show_is_a_recipe(tmp_path):
    text = trajmill("recipe", "show", "lemat-traj").stdout
    shown = tmp_path / "shown.toml"
    shown.write_text(text)
    assert tomllib.loads(text)["rules"]["energy_window"] == {"enabled": True, "above": 1.0, "below": 0.5}
    wrong = trajmill("build", shown, "--set", "rules.energy_window.over=1")
    assert wrong.stderr.endswith("unknown key rules.energy_window.over; known here: enabled, above, below\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--foo"], "No such option"),
        (["build"], "store.path: say where the store is to be"),
        (["build", "--out", "{tmp}/store"], "nothing to build: give a path for one of mp, alexandria, oqmd"),
        (["build", "nope.toml"], "nope.toml: cannot be read"),
        (["build", "--mp", "nowhere", "--out", "{tmp}/s"], "mp.path: nowhere does not exist"),
        (["build", "--alexandria", "{tmp}", "--out", "{tmp}/s"], "no *.json.bz2 path files here"),
        (
            ["build", "--set", "rules.max_force.threshold=much"],
            "rules.max_force.threshold: Input should be a valid number",
        ),
        (["info", "{tmp}"], "neither a store nor a release"),
        (["release", "{tmp}", "{tmp}/out"], "no trajmill store here"),
        (["rejections", "{tmp}"], "no trajmill store here"),
        (["recipe", "show", "best"], "no recipe best; there are: lemat-traj"),
        (["push", "{tmp}", "me/data"], "no release here (no trajmill.json); make one with trajmill release"),
        (["push", "{tmp}", "data"], "write namespace/name for a dataset of the Hub, ./folder or a URL for an address"),
        (["push", "{tmp}", "./out", "--create-pr"], "--create-pr are for the Hugging Face Hub"),
        (["grind"], "No such command"),
    ],
)
def test_what_the_user_can_put_right_is_one_line_and_code_2(tmp_path, arguments, message):
    result = trajmill(*(a.format(tmp=tmp_path) for a in arguments), cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_interrupted_is_130_and_can_go_on(tmp_path):
    command = [
        sys.executable,
        "-m",
        "trajmill.cli",
        "build",
        "--alexandria",
        str(ALEXANDRIA),
        "--out",
        str(tmp_path / "store"),
    ]
    with subprocess.Popen(
        [*command, "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        log = tmp_path / "store/_delta_log/00000000000000000001.json"
        while process.poll() is None and not log.exists():  # the first asset is committed
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "stopping when the running files are done" in err
    assert "stopped before all was done; run the same command again to go on" in out
    again = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    built, unchanged = numbers(again.stdout.splitlines()[0])[-2:]
    assert built + unchanged == 3
    assert unchanged >= 1


# --- query and split


def test_query(store, tmp_path):
    shown = trajmill("query", store, 'source = "oqmd" AND max_force < 1', "--columns", "id,nsites", "--limit", 2)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    n = numbers(lines[0])[0]
    assert lines[0].rstrip().endswith("frames")
    assert sum("oqmd-" in line for line in lines) == min(n, 2)
    some = tmp_path / "some.parquet"
    written = trajmill("query", store, 'source = "alexandria"', "--sample", 3, "--every", 1000, "--out", some)
    assert written.stdout.startswith("3 frames"), written.stderr
    assert trajmill("query", some).stdout == written.stdout


def test_split(store, tmp_path):
    file = tmp_path / "split.parquet"
    made = trajmill("split", store, file, "--by", "material", "--part", "train=0.9", "--part", "test=0.1")
    assert made.returncode == 0, made.stderr
    counts = [numbers(line)[0] for line in made.stdout.splitlines() if "train" in line or "test" in line]
    of_test = trajmill("query", store, "is_final = TRUE", "--part", file, "test", "--limit", 1)
    assert numbers(of_test.stdout)[0] == counts[-1]


def test_subsets(store, tmp_path):
    file = tmp_path / "subset.parquet"
    sizes = ("--frames", "train=40", "--frames", "test=5", "--balance", "alexandria=0.8", "--balance", "mp=0.2")
    made = trajmill("split", store, file, 'functional = "pbe"', *sizes)
    assert made.returncode == 2, "a filter is an option"
    made = trajmill("split", store, file, "--where", 'functional = "pbe"', *sizes)
    assert made.returncode == 0, made.stderr
    drawn = trajmill(
        "query", store, 'source = "alexandria" AND functional = "pbe"', "--part", file, "train", "--limit", 1
    )
    assert abs(numbers(drawn.stdout)[0] - 32) <= 2


def test_check(store, tmp_path):
    right = trajmill("check", store)
    assert right.returncode == 0, right.stdout + right.stderr
    assert "wrong" not in right.stdout
    published = tmp_path / "published.parquet"
    trajmill("convert", store, published, "--to", "lemat-traj", "--where", 'source = "alexandria"')
    wrong = trajmill("check", published, "--stress", "eV/A^3")
    assert wrong.returncode == 1
    assert "kBar with VASP's sign" in " ".join(wrong.stdout.split())


def test_leakage(store, tmp_path):
    assert trajmill("leakage", store, store, "--no-structures").returncode == 1
    none = tmp_path / "none.parquet"
    trajmill("query", store, "nsites > 100000", "--out", none)
    clean = trajmill("leakage", store, none)
    assert clean.returncode == 0, clean.stderr
    (tmp_path / "wbm.txt").write_text("wbm-1-1\nwbm-1-2\n")
    listed = trajmill("leakage", store, tmp_path / "wbm.txt")
    assert (listed.returncode, listed.stdout) == (0, "0 trajectories are of one of 2 listed materials\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "STORE", "nsite < 3"], "nothing is called nsite; did you mean nsites?"),
        (["query", "STORE", "--columns", "energi"], "no column energi"),
        (["query", "STORE", "--every", "2", "--farthest", "3"], "one way of thinning at a time"),
        (["query", "STORE", "--part", "none.parquet", "test"], "none.parquet: no split of trajmill"),
        (["query", "STORE", "--sample", "-1"], "-1 trajectories cannot be drawn"),
        (["query", "nowhere"], "neither a trajmill store nor a release"),
        (["convert", "STORE", "OUT", "--to", "hdf6"], "nothing is called hdf6"),
        (["leakage", "STORE", "none.txt"], "none.txt: No such file"),
        (["split", "STORE", "OUT", "--part", "train"], "write a name and a number"),
        (["split", "STORE", "OUT", "--part", "train=0.5"], "add up to 1"),
        (["split", "STORE", "OUT", "--by", "colour"], "no groups by colour"),
        (["split", "STORE", "OUT", "--frames", "train=10", "--by", "formula"], "leave --part and --by out"),
        (["split", "STORE", "OUT", "--preset", "mptrj"], "no preset mptrj; there are lemat-traj"),
        (["split", "STORE", "OUT", "--preset", "lemat-traj", "--frames", "dev=1"], "train and test, not dev"),
        (["split", "STORE", "OUT", "--preset", "lemat-traj"], "in this balance, fewer than"),
        (["split", "STORE", "OUT", "--balance", "mp=1"], "--balance goes with --frames"),
        (["release", "STORE", "OUT", "--split", "none.parquet"], "none.parquet: no split of trajmill"),
        (["convert", "STORE", "x.extxyz", "--workers", "2"], "a file is written by one process"),
    ],
)
def test_wrong_questions_are_one_line(store, tmp_path, arguments, message):
    places = {"STORE": store, "OUT": tmp_path / "split.parquet"}
    result = trajmill(*(places.get(a, a) for a in arguments))
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.filterwarnings("ignore")  # torch's, e3nn's and MACE's of each other
@pytest.mark.parametrize("page", sorted((DATA.parents[1] / "docs/use").glob("*.md")), ids=lambda page: page.stem)
def test_the_pages_on_use_run(page, store, tmp_path, monkeypatch):
    """Each block of Python and each line of shell of a page, one after the other."""
    page = page.read_text("utf-8")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/store").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec("\n".join(code), {})  # the documentation's own
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            result = trajmill(*shlex.split(line)[1:])
            assert result.returncode == 0, result.stderr
