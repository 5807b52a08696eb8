"""Models by name: ASE calculators of potentials that are files, or that come with their packages."""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from trajmill.errors import ModelError, require

ASKED = ("implemented_properties", "memory_scales_with")
"""What ASE's calculators have, and what torch-sim's models have."""


def calculator(name: str, *, device: str = "cpu") -> Any:
    """Return the ASE calculator of a model.

    Args:
        name: `chgnet`, `sevennet` (weights that come with their packages), `sevennet:NAME` or `sevennet:NAME:MODAL` for
            others of SevenNet's, `mace:FILE` (a trained model, also one of `trajmill train`), or `MODULE:CALLABLE`,
            called without arguments, for any other calculator, or a model of torch-sim's.
        device: `cpu` or `cuda`, where the model takes it.

    Raises:
        ModelError: no such model or file, or it cannot be loaded.
        MissingExtraError: its package is not installed.
    """
    kind, _, rest = name.partition(":")
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():  # models print what they have loaded
            warnings.simplefilter("ignore")  # torch's, e3nn's and MACE's of each other
            if kind in KNOWN:
                return KNOWN[kind](rest, device)
            found = getattr(import_module(kind), rest)() if rest else None
    except (
        ImportError, AttributeError, OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, UnpicklingError
    ) as error:  # fmt: skip
        why = " ".join(str(error).split())  # on one line
        raise ModelError(f"{name}: cannot be loaded ({type(error).__name__}: {why})") from error
    if found is None:
        raise ModelError(f"no model {name}; there are {', '.join(KNOWN)}, and MODULE:CALLABLE for any ASE calculator")
    if not any(hasattr(found, method) for method in ASKED):
        raise ModelError(f"{name}: gives a {type(found).__name__}, which is no calculator")
    return found


def digest_of(name: str, *asked: str) -> str:
    """Return what tells a model, and what it is asked, from others: by its weights where they are a file, else by name.

    Args:
        name: as `calculator` takes it.
        asked: anything that answers depend on besides.
    """
    kind, _, place = name.partition(":")
    weights = Path(place).read_bytes() if place and Path(place).is_file() else place.encode()
    return hashlib.sha256(" ".join([kind, *asked, ""]).encode() + weights).hexdigest()


def _mace(file: str, device: str) -> Any:
    if not Path(file).is_file():
        raise ModelError(f"mace:{file}: no such file; write mace: and the path of a model")
    return require("mace.calculators", extra="mace").MACECalculator(
        model_paths=file, device=device, default_dtype="float64"
    )


def _chgnet(_: str, device: str) -> Any:
    return require("chgnet.model.dynamics", extra="chgnet").CHGNetCalculator(use_device=device)


def _sevennet(name: str, device: str) -> Any:
    model, _, modal = name.partition(":")
    return require("sevenn.calculator", extra="sevennet").SevenNetCalculator(
        model or "7net-0", device=device, modal=modal or None
    )


KNOWN: dict[str, Callable[[str, str], Any]] = {"mace": _mace, "chgnet": _chgnet, "sevennet": _sevennet}
"""Models that need a file or nothing but their name."""
