"""Recipes of trainings: what is trained, for how long, on what. Checked before anything is computed."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trajmill.errors import ModelError


class Section(BaseModel):
    """Of a file of settings: keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)


class Weights(NamedTuple):
    """Of energies, forces and stresses in the loss."""

    energy: float
    forces: float
    stress: float


class Architecture(Section):
    """Of MACE."""

    r_max: float = Field(6.0, gt=0, description="A, cut-off")
    num_channels: int = Field(128, ge=1)
    max_L: int = Field(1, ge=0)  # noqa: N815 (MACE's names)
    max_ell: int = Field(3, ge=0)
    correlation: int = Field(3, ge=1)
    num_interactions: int = Field(2, ge=1)
    num_radial_basis: int = Field(8, ge=1)


class StageTwo(Section):
    """From some epoch on, other weights."""

    start: int = Field(ge=1, description="epoch, from 0")
    weights: Weights = Weights(100.0, 100.0, 1.0)
    lr: float = Field(8e-4, gt=0)


class TrainingRecipe(Section):
    """A training with MACE. Defaults are those of the LeMat-Traj paper's first stage."""

    name: str = Field("model", pattern=r"^[A-Za-z0-9_-]+$")
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(128, ge=1)
    lr: float = Field(8e-4, gt=0, description="constant")
    weights: Weights = Weights(1.0, 10.0, 1.0)
    stage_two: StageTwo | None = None
    foundation: Path | None = Field(None, description="model whose weights training starts from")
    energy: Literal["energy", "energy_corrected"] = "energy"
    ema: float | None = Field(None, gt=0, lt=1, description="decay of averaged weights, which are then what is kept")
    save_every: int = Field(1000, ge=1, description="steps between checkpoints within an epoch")
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    model: Architecture = Architecture()

    @field_validator("foundation")
    @classmethod
    def _is_there(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"{path} is not there")
        return path

    @model_validator(mode="after")
    def _begins_in_time(self) -> Self:
        if self.stage_two and self.stage_two.start >= self.epochs:
            raise ValueError(f"stage_two.start: there are but {self.epochs} epochs")
        return self


BUILT_IN: dict[str, dict[str, Any]] = {
    "lemat-stage1": {"name": "stage1", "weights": [1, 10, 1]},
    "lemat-stage2": {"name": "stage2", "weights": [100, 100, 1]},
    "lemat-finetune": {"name": "finetuned", "weights": [1, 100, 1]},
}
"""Those of the LeMat-Traj paper. The second goes on from a model of the first, the third from one of other data: both
need a `foundation`."""

NEED_FOUNDATION = ("lemat-stage2", "lemat-finetune")


def load(name: str, **changes: Any) -> TrainingRecipe:
    """Read a recipe.

    Args:
        name: a TOML file, or one of `BUILT_IN`.
        changes: keys that override it; None leaves them.

    Raises:
        ModelError: there is none, or it makes no sense.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        content = BUILT_IN[name] if name in BUILT_IN else tomllib.loads(Path(name).read_text(encoding="utf-8"))
        recipe = checked(TrainingRecipe, {**content, **given}, name)
    except FileNotFoundError as error:
        raise ModelError(f"no recipe {name}; there are {', '.join(BUILT_IN)}, or name a TOML file") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{name}: cannot be read ({error})") from error
    if name in NEED_FOUNDATION and recipe.foundation is None:
        raise ModelError(f"{name}: say which model it goes on from (--foundation FILE)")
    return recipe


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first key of settings that is not as before, `section.key` within a section; None where all are.

    Args:
        before: as they were read from JSON.
        now: what JSON may be made of.
    """
    now = json.loads(json.dumps(now))
    for key in {**now, **before}:
        was, value = before.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(value, dict):
            if within := difference(was, value):
                return f"{key}.{within}"
        elif was != value or (key in before) != (key in now):
            return key
    return None


def checked(kind: type[S], content: Mapping[str, Any], origin: str) -> S:
    """Read settings.

    Raises:
        ModelError: they make no sense; names the origin, the key and what is wrong.
    """
    try:
        return kind(**content)
    except ValidationError as error:
        first = error.errors()[0]
        place = [".".join(map(str, first["loc"]))] if first["loc"] else []
        what = "no such key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise ModelError(": ".join([origin, *place, what])) from error
