"""Rules on the facts of a record: they look at no array."""

from __future__ import annotations

from collections.abc import Callable

from trajmill import recipe
from trajmill.sources.base import RELAXATION
from trajmill.trajectory import Trajectory


def license(t: Trajectory, options: recipe.License) -> str | None:  # noqa: A001 (the rule's name)
    """Keep records under an accepted licence; what the source could not license at all is a finding of its reader."""
    if text := t.findings.get("license"):
        return text
    if t.license is not None and t.license not in options.accept:
        return f"licence {t.license}, accepted: {', '.join(options.accept)}"
    return None


def deprecated(t: Trajectory, _: recipe.Rule) -> str | None:
    """Keep what the source has not withdrawn."""
    return t.deprecated


def task_type(t: Trajectory, _: recipe.Rule) -> str | None:
    """Keep structure optimisations."""
    return None if t.task_type == RELAXATION else f"{t.task_type} is no structure optimisation"


def unsupported_functional(t: Trajectory, _: recipe.Rule) -> str | None:
    """Keep pbe, pbesol, scan and r2scan; nothing folds into them."""
    if text := t.findings.get("unsupported_functional"):
        return text
    return None if t.functional else f"run type {t.run_type}"


def elements(t: Trajectory, options: recipe.Elements) -> str | None:
    """Keep cells without the source's excluded elements."""
    excluded = [e for e in options.exclude.get(t.source, ()) if e in t.composition]
    return f"contains {', '.join(excluded)}" if excluded else None


def finding(name: str) -> Callable[[Trajectory, recipe.Rule], str | None]:
    """Make the rule that rejects what the reader found under this name."""

    def rule(t: Trajectory, _: recipe.Rule) -> str | None:
        return t.findings.get(name)

    return rule
