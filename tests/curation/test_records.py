import pytest

from making import make
from trajmill import recipe
from trajmill.curation import RULES, records

ON = recipe.Rule()


@pytest.mark.parametrize(
    ("changes", "options", "text"),
    [
        ({"license": "BY-C"}, {}, None),
        ({"license": None}, {}, None),  # a task without a material that the recipe keeps
        ({"license": "BY-NC"}, {}, "licence BY-NC, accepted: BY-C"),
        ({"license": "BY-NC"}, {"accept": ("BY-C", "BY-NC")}, None),
        ({"license": "BY-C"}, {"accept": ()}, "licence BY-C, accepted: "),
        ({"license": "BY-C", "findings": {"license": "no materials"}}, {}, "no materials"),
    ],
)
def test_license(changes, options, text):
    assert records.license(make(**changes), recipe.License(**options)) == text


@pytest.mark.parametrize("reason", [None, "in deprecated_tasks"])
def test_deprecated(reason):
    assert records.deprecated(make(deprecated=reason), ON) == reason


@pytest.mark.parametrize(
    ("task_type", "text"),
    [("Structure Optimization", None), ("Static", "Static is no structure optimisation")],
)
def test_task_type(task_type, text):
    assert records.task_type(make(task_type=task_type), ON) == text


@pytest.mark.parametrize(
    ("functional", "run_type", "findings", "text"),
    [
        ("pbe", "GGA", {}, None),
        ("pbe", "GGA+U", {}, None),
        ("r2scan", "r2SCAN", {}, None),
        ("pbe", None, {}, None),
        (None, "PBEsol+U", {}, "run type PBEsol+U"),
        (None, None, {}, "run type None"),
        (
            None,
            None,
            {"unsupported_functional": "no functional in the file's path"},
            "no functional in the file's path",
        ),
    ],
)
def test_unsupported_functional(functional, run_type, findings, text):
    t = make(functional=functional, run_type=run_type, findings=findings)
    assert records.unsupported_functional(t, ON) == text


@pytest.mark.parametrize(
    ("source", "symbols", "exclude", "text"),
    [
        ("alexandria", ("Yb", "O"), None, "contains Yb"),
        ("alexandria", ("Y", "B"), None, None),
        ("mp", ("Yb", "O"), None, None),  # MP's Yb_3 is kept
        ("oqmd", ("Yb", "O"), None, None),
        ("mp", ("Cs", "U", "O"), {"mp": ("U", "Cs")}, "contains U, Cs"),
        ("alexandria", ("Yb", "O"), {"mp": ("Yb",)}, None),
    ],
)
def test_elements(source, symbols, exclude, text):
    options = recipe.Elements() if exclude is None else recipe.Elements(exclude=exclude)
    assert records.elements(make(source=source, symbols=symbols), options) == text


FINDINGS = ("oqmd_duplicate", "ordered_sites", "site_order", "relaxation_record", "relaxation_converged")


@pytest.mark.parametrize("name", FINDINGS)
def test_findings_of_the_reader(name):
    rule = next(r for r in RULES if r.name == name)
    assert rule.sources == {"oqmd"}
    assert rule.reject(make(findings={name: "why"}), ON) == "why"
    assert rule.reject(make(findings=dict.fromkeys(set(FINDINGS) - {name}, "other")), ON) is None
