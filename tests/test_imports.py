import subprocess
import sys

import pytest

HEAVY = {
    "ase", "dask", "datasets", "deltalake", "duckdb", "fsspec", "httpx2", "huggingface_hub", "matplotlib", "moyopy",
    "numba", "obstore", "pandas", "polars", "pyarrow", "pymatgen", "scipy", "spglib", "torch",
}  # fmt: skip
CODE = """
import sys
before = set(sys.modules)
import {module}
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}} & {heavy!r}))
"""


def imported(module, cwd):
    """Import in a fresh process, warnings as errors; return what was printed and which heavy packages came along."""
    command = [sys.executable, "-W", "error", "-c", CODE.format(module=module, heavy=HEAVY)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list(cwd.iterdir()) == [], "importing writes nothing"
    lines = done.stdout.splitlines()
    assert len(lines) == 1, "importing prints nothing"
    return set(lines[0].split())


@pytest.mark.parametrize(
    "module",
    ["trajmill", *map("trajmill.{}".format, "cli recipe trajectory errors raw fetcher remotes.s3".split())],
)
def test_nothing_heavy(module, tmp_path):
    pytest.importorskip(module)
    assert imported(module, tmp_path) == set()


@pytest.mark.parametrize(
    "module", ["trajmill.curation", "trajmill.annotation", "trajmill.sources", "trajmill.sources.alexandria"]
)
def test_readers_and_rules_need_numpy_only(module, tmp_path):
    assert imported(module, tmp_path) == set()


@pytest.mark.parametrize("module", ["trajmill.pipeline", "trajmill.builder", "trajmill.engines.worker"])
def test_stores_load_no_chemistry(module, tmp_path):
    assert imported(module, tmp_path) <= {"pyarrow", "deltalake"}


def test_public_names_are_no_modules_whatever_was_imported_before():
    """A module called like a public function would take its place once it is imported."""
    import importlib
    import pkgutil

    import trajmill

    assert not set(trajmill.__all__) & {module.name for module in pkgutil.iter_modules(trajmill.__path__)}
    for name in trajmill.__all__:
        value = getattr(trajmill, name)
        assert callable(value)
        importlib.import_module(value.__module__)
        assert getattr(trajmill, name) is value
