"""Task and materials documents of the Materials Project as typed structures that skip what trajmill does not need."""

from __future__ import annotations

import json
from types import UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

from trajmill.sources.pymatgen_json import AnySite, Rows, Structure, decode
from trajmill.sources.vasp_inputs import CalculationInput

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
T = TypeVar("T", bound=msgspec.Struct)


class ElectronicStep(msgspec.Struct, gc=False):
    """An electronic step, eV."""

    e_fr_energy: float | None = None
    e_0_energy: float | None = None


class IonicStep(msgspec.Struct, Generic[AnySite], gc=False):
    """An ionic step; energies eV, forces eV/A, stress kBar with VASP's sign.

    The step's own `e_0_energy` is left out on purpose: for VASP 5 it holds the electronic entropy, not an energy.
    """

    e_fr_energy: float | None = None
    forces: Rows | None = None
    stress: Rows | None = None
    structure: Structure[AnySite] | None = None
    electronic_steps: list[ElectronicStep | None] | None = None
    num_electronic_steps: Count | None = None


class FinalSite(msgspec.Struct, gc=False):
    """A site of the last structure, for its magnetic moment."""

    properties: dict[str, Any] | None = None


class FinalStructure(msgspec.Struct, gc=False):
    """The last structure of a calculation."""

    sites: list[FinalSite | None] | None = None


class Outcar(msgspec.Struct, gc=False):
    """What the OUTCAR adds."""

    magnetization: list[Any] | None = None


class CalculationOutput(msgspec.Struct, Generic[AnySite], gc=False):
    """`calcs_reversed[].output`."""

    ionic_steps: list[IonicStep[AnySite] | None] | None = None
    structure: FinalStructure | None = None
    outcar: Outcar | None = None


class Calculation(msgspec.Struct, Generic[AnySite], gc=False):
    """One VASP calculation of a task."""

    input: CalculationInput | None = None
    output: CalculationOutput[AnySite] | None = None
    run_type: Any = None
    task_type: Any = None
    calc_type: Any = None
    completed_at: Any = None


class Task(msgspec.Struct, Generic[AnySite], gc=False):
    """A task document; `calcs_reversed` has the last calculation first."""

    task_id: str | int | None = None
    calcs_reversed: list[Calculation[AnySite] | None] | None = None
    run_type: Any = None
    task_type: Any = None
    calc_type: Any = None
    last_updated: Any = None


class Identifier(msgspec.Struct, gc=False):
    """What tells the tasks of a file apart."""

    task_id: str | int | None = None


class Origin(msgspec.Struct, gc=False):
    """Which task a property of a material comes from."""

    name: str | None = None
    task_id: str | int | None = None


class BuilderMeta(msgspec.Struct, gc=False):
    """Who built a material document, and under which licence it may be used."""

    license: str | None = None


class Material(msgspec.Struct, gc=False):
    """A materials document."""

    material_id: str | int | None = None
    task_ids: list[str | int] | None = None
    deprecated: bool | None = None
    deprecation_reasons: Any = None
    deprecated_tasks: list[str | int] | None = None
    calc_types: dict[str, Any] | None = None
    run_types: dict[str, Any] | None = None
    task_types: dict[str, Any] | None = None
    origins: list[Origin | None] | None = None
    builder_meta: BuilderMeta | None = None
    last_updated: Any = None


def decode_leniently(decoder: msgspec.json.Decoder[Any], raw: bytes, kind: type[T]) -> T:
    """Decode one document; what is not of its type is lost alone, not the document with it.

    Args:
        decoder: reads nearly every document.
        raw: one line of a JSON Lines file.
        kind: type of the document, for those it does not read.

    Raises:
        ValueError: not JSON, nested too deeply, or not an object.
    """
    try:
        document: T | None = decode(decoder, raw)
    except msgspec.ValidationError:
        document = salvage(json.loads(raw), kind | None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if document is None:
        raise ValueError("not a document")
    return document


def salvage(value: Any, kind: Any) -> Any:
    """Convert decoded JSON to a type, piece by piece.

    What is malformed becomes None at the nearest place whose type admits it: a bad force component costs that
    component, a bad site its structure.

    Raises:
        ValueError: malformed, and nowhere admits None.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        pass
    if get_origin(kind) in (Union, UnionType):
        for choice in get_args(kind):
            try:
                return salvage(value, choice)
            except ValueError:
                continue
    elif get_origin(kind) is list and isinstance(value, list):
        return [salvage(item, get_args(kind)[0]) for item in value]
    elif isinstance(struct := get_origin(kind) or kind, type) and issubclass(struct, msgspec.Struct):
        if not isinstance(value, dict):
            raise ValueError(f"not {kind}")
        present = [field for field in msgspec.structs.fields(kind) if field.name in value]
        try:
            return struct(**{field.name: salvage(value[field.name], field.type) for field in present})
        except TypeError as error:
            raise ValueError("a required field is missing") from error
    elif kind is type(None):
        return None
    raise ValueError(f"not {kind}")
