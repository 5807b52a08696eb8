import ast
from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

import trajmill
from trajmill import recipe
from trajmill.errors import RecipeError
from trajmill.recipe import Recipe, load

SOURCES = recipe.SOURCES
NOT_CONTENT = {"path", "layout", "split", "pattern", "duplicate_trajectory", "primary_agreement"}
"""Where things lie, how large files are shared, the rules that run at release: no reason to build an asset again."""


def keys(section=Recipe, prefix=()):
    """All keys of the recipe with their fields."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from keys(info.annotation, (*prefix, name))
        else:
            yield (*prefix, name), info


KEYS = dict(keys())


def another(info):
    """A value that is not the default."""
    if get_origin(info.annotation) is not None and isinstance(info.default, str):
        return next(v for v in get_args(info.annotation) if v != info.default)
    if info.default is None and (choices := [c for a in get_args(info.annotation) for c in get_args(a)]):
        return choices[0] if all(isinstance(c, str) for c in choices) else "somewhere"
    if isinstance(info.default, bool):
        return not info.default
    if isinstance(info.default, (int, float)):
        return info.default / 2 if isinstance(info.default, float) else info.default + 1
    if isinstance(info.default, str) and info.default.startswith("http"):
        return "http://localhost"
    if isinstance(info.default, tuple):
        return info.default[:-1]
    return {} if isinstance(info.default, dict) else "somewhere"


def changed(path, value):
    content = value
    for part in reversed(path):
        content = {part: content}
    return Recipe.model_validate(content)


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_the_digest_changes_with_what_decides_rows_and_with_nothing_else(path):
    default, other = Recipe(), changed(path, another(KEYS[path]))
    assert other != default
    differs = {s for s in SOURCES if other.content_digest(s) != default.content_digest(s)}
    if NOT_CONTENT & set(path) or path[0] in ("fetch", "store", "engine", "release"):
        assert differs == set()
    else:
        assert differs == ({path[0]} if path[0] in SOURCES else set(SOURCES))


def test_the_digest_of_a_source_ignores_other_sources():
    assert len({Recipe().content_digest(s) for s in SOURCES}) == len(SOURCES)
    assert load(settings=["oqmd.stress=kbar"]).content_digest("mp") == Recipe().content_digest("mp")


def test_every_key_is_used_and_described():
    """A key nobody reads would be accepted and ignored."""
    source = Path(trajmill.__file__).parent
    used = {
        node.attr
        for file in source.rglob("*.py")
        if file.name != "recipe.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    }
    for path, info in KEYS.items():
        assert path[-1] in used, f"{'.'.join(path)} is read nowhere"
        assert info.description, path


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("rules.geometry.min_volume=0.2", "rules.geometry.min_volume", 0.2),
        ("rules.max_force.enabled=true", "rules.max_force.enabled", True),
        ("engine.workers = 3", "engine.workers", 3),
        ("oqmd.stress=kbar", "oqmd.stress", "kbar"),  # a bare word
        ('oqmd.stress="kbar"', "oqmd.stress", "kbar"),  # TOML
        ("mp.path=/data/mp", "mp.path", Path("/data/mp")),
        ("mp.path=/data/a=b", "mp.path", Path("/data/a=b")),
        ('rules.license.accept=["BY-C", "BY-NC"]', "rules.license.accept", ("BY-C", "BY-NC")),
        ("rules.elements.exclude.mp=['Cs']", "rules.elements.exclude", {"mp": ("Cs",)}),
    ],
)
def test_set(setting, path, value):
    found = load(settings=[setting])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_later_settings_win_over_earlier_ones_and_over_the_file(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[rules.energy_window]\nabove = 2.0\nbelow = 3.0\n")
    window = load(file, ["rules.energy_window.above=4", "rules.energy_window.above=5"]).rules.energy_window
    assert (window.above, window.below) == (5.0, 3.0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("mp", "--set mp: write it as section.key=value, for example mp.tasks_without_material=keep"),
        ("workers=3", "--set workers=3: write it as section.key=value, for example mp.tasks_without_material=keep"),
        ("mp.layout.deep=1", "recipe: mp.layout: Input should be 'auto', 'jsonl' or 'delta' (got {'deep': 1})"),
        ("mpp.path=x", "recipe: unknown key mpp; known here: mp, alexandria, oqmd, vasp, ase, fetch"),
        ("mp.paht=x", "recipe: unknown key mp.paht; known here: path, layout, tasks_without_material"),
        ("rules.geometry.min=1", "recipe: unknown key rules.geometry.min; known here: enabled, min_volume, min_dist"),
        ("rules.geometry.min_volume=0", "recipe: rules.geometry.min_volume: Input should be greater than 0 (got 0)"),
        ("rules.geometry.min_volume=nan", "recipe: rules.geometry.min_volume: "),
        ("rules.energy_window.above=-1", "recipe: rules.energy_window.above: Input should be greater than 0 (got -1)"),
        ("rules.max_force.threshold=big", "recipe: rules.max_force.threshold: Input should be a valid number"),
        ("oqmd.stress=gpa", "recipe: oqmd.stress: Input should be 'null' or 'kbar' (got 'gpa')"),
        ("engine.workers=-1", "recipe: engine.workers: Input should be greater than or equal to 0 (got -1)"),
        ("engine.workers=1.5", "recipe: engine.workers: Input should be a valid integer"),
        ("rules=1", "--set rules=1: write it as section.key=value, for example mp.tasks_without_material=keep"),
    ],
)
def test_refusals_say_what_and_what_is_allowed_in_one_line(setting, message):
    with pytest.raises(RecipeError) as caught:
        load(settings=[setting])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_value_is_no_section(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[mp]\nlayout = 'auto'\n")
    with pytest.raises(RecipeError, match=r"^--set mp.layout.x=1: layout is a value, not a section$"):
        load(file, ["mp.layout.x=1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[mp\n", "not a TOML file (Expected ']' at the end of a table declaration (at line 1, column 4))"),
        (b"\xff\xfe", "not a TOML file ("),
        (b"[rules.energy]\nabove = 1", "unknown key rules.energy; known here: license, "),
        (b"mp = 3", "mp: Input should be a valid dictionary"),
    ],
)
def test_bad_files(tmp_path, content, message):
    file = tmp_path / "recipe.toml"
    file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_built_in_recipes(tmp_path):
    with pytest.raises(
        RecipeError, match=r"nothing.toml: cannot be read \(No such file.*built-in recipes: lemat-traj$"
    ):
        load(tmp_path / "nothing.toml")


def test_built_in():
    assert load("lemat-traj") == load() == Recipe()
    load("lemat-traj", ["rules.max_force.enabled=true"])
    assert not recipe.BUILT_IN["lemat-traj"].rules.max_force.enabled  # a setting does not leak into the next load


def test_documented_defaults():
    rules = load().rules
    assert (rules.energy_window.above, rules.energy_window.below) == (1.0, 0.5)
    assert (rules.geometry.min_volume, rules.geometry.min_distance) == (0.1, 0.5)
    assert rules.primary_agreement.tolerance == 0.020
    assert rules.license.accept == ("BY-C",)
    assert rules.elements.exclude == {"alexandria": ("Yb",)}
    assert rules.electronic_convergence.unknown == "reject"
    assert load().annotation.symprec == 1e-4
    enabled = {name for name in type(rules).model_fields if getattr(rules, name).enabled}
    assert set(type(rules).model_fields) - enabled == {"max_force"}


def test_to_toml_and_back(tmp_path):
    before = load(settings=["mp.path=/data/mp", "rules.max_force.threshold=20", "rules.elements.exclude.mp=['Cs']"])
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.to_toml(before))
    assert load(file) == before
