"""The documentation says what the code does."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

from trajmill import recipe, schema
from trajmill.curation import RULES
from trajmill.releases.selection import RELEASE_RULES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_up_to_date(generate):
    outdated = [str(f.relative_to(ROOT)) for f, text in generate.contents().items() if f.read_text("utf-8") != text]
    assert not outdated, "run `make docs` and commit"


def test_every_marker_is_closed(generate):
    for page in generate.pages():
        text = page.read_text("utf-8")
        assert text.count("<!-- generated: ") == len(generate.BLOCK.findall(text)), page


def test_every_rule_has_a_section_in_the_order_they_run():
    sections = re.findall(r"^### (\w+)$", (DOCS / "rules.md").read_text("utf-8"), re.MULTILINE)
    assert sections == ["readable", *(rule.name for rule in RULES), *RELEASE_RULES]


def test_every_rule_of_the_recipe_runs_somewhere():
    run = {rule.section or rule.name for rule in RULES} | set(RELEASE_RULES)
    assert set(recipe.Rules.model_fields) == run


@pytest.mark.parametrize(
    "column", [*schema.PUBLISHED, *schema.ADDED, *schema.LEDGER, *schema.PARTITIONS], ids=lambda c: c.name
)
def test_every_column_is_described(column):
    assert column.description
    assert f"| `{column.name}` |" in (DOCS / "data-model.md").read_text("utf-8")


def test_every_key_of_the_recipe_is_described(generate):
    text = (DOCS / "recipe.md").read_text("utf-8")
    for section in recipe.Recipe.model_fields:
        assert f"<!-- generated: recipe.{section} -->" in text
        for name, field in recipe.Recipe.model_fields[section].annotation.model_fields.items():
            assert f"`{section}.{name}" in text
            assert field.description or section == "rules", f"{section}.{name}"


def test_recipes_in_the_documentation_are_valid(tmp_path):
    examples = [
        block
        for page in DOCS.rglob("*.md")
        if page.name not in ("train.md", "experiment.md")  # they are of trainings: tests/training
        for block in re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    assert examples
    for text in [*examples, (ROOT / "demo.toml").read_text("utf-8")]:
        tomllib.loads(text)
        (tmp_path / "recipe.toml").write_text(text, "utf-8")
        recipe.load(tmp_path / "recipe.toml")


def test_demo_paths_exist():
    demo = recipe.load(ROOT / "demo.toml")
    assert all((ROOT / section.path).exists() for section in (demo.mp, demo.alexandria, demo.oqmd))


def test_pages_link_to_pages_that_exist():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_measurement_says_where_it_was_made():
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    expected = "builds columns compare fetch figures leakage loading log scaling soak stages".split()
    assert {f.stem for f in files} >= set(expected)
    for file in files:
        machine = json.loads(file.read_text("utf-8"))["machine"]
        assert machine.keys() >= {"cpu", "cores", "memory_gb", "system", "python", "packages", "date"}, file
        assert machine["packages"]["trajmill"], file


def test_every_table_is_on_a_page(generate):
    used = {name for page in generate.pages() for _, name, _ in generate.BLOCK.findall(page.read_text("utf-8"))}
    assert set(generate.measured.TABLES) <= used
