"""The recipe: a TOML file that describes a whole build, checked before anything is read."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, ValidationError

from trajmill.errors import RecipeError, TrajmillError
from trajmill.storage import AnyPath, ObjectPath, as_path
from trajmill.uris import without_password

PUBLISHED = ("mp", "alexandria", "oqmd")
"""Names of the sources that are databases, whose raw files can be fetched."""

SOURCES = (*PUBLISHED, "vasp", "ase")
"""Names of all sources, and of their sections."""

SPLIT = "bytes; a larger raw file is read in parts of at most this size, each an asset of its own"

Positive = Annotated[float, Field(gt=0)]
Size = Annotated[int, Field(gt=0)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/]")]


def _as_raw_path(value: object) -> object:
    try:
        return as_path(value) if isinstance(value, str) else value
    except TrajmillError as error:
        raise ValueError(str(error)) from error


RawPath = Annotated[InstanceOf[ObjectPath] | Path, BeforeValidator(_as_raw_path)]
"""Where raw files are: on this machine, or `s3://bucket/prefix`."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MaterialsProject(_Section):
    """Materials Project."""

    path: RawPath | None = Field(
        None,
        description="folder with `tasks/` and `materials/` (JSON Lines) or `core/` and `collections/` (Delta Lake)",
    )
    layout: Literal["auto", "jsonl", "delta"] = Field(
        "auto", description="which of the two forms the folder holds; auto looks"
    )
    tasks_without_material: Literal["reject", "keep"] = Field(
        "reject",
        description="a task no materials document names has no licence and no verdict; keep leaves it null",
    )
    split: Size = Field(1_000_000_000, description=SPLIT)


class Alexandria(_Section):
    """Alexandria."""

    path: RawPath | None = Field(
        None, description="folder with `*.json.bz2` path files at any depth; the functional is read from the path"
    )
    settings: Literal["mp", "unknown"] = Field(
        "mp",
        description="mp infers +U and potentials by MP's input sets, unknown leaves them and the corrected energy null",
    )
    split: Size = Field(1_000_000_000, description=SPLIT)


@dataclass(frozen=True)
class DatabaseAddress:
    """Where a MySQL or MariaDB database is. Its text names neither user nor password."""

    user: str
    password: str = field(repr=False)
    host: str
    port: int
    database: str

    @classmethod
    def parse(cls, text: str) -> DatabaseAddress:
        """Read `mysql://user:password@host:port/database`, user and password percent-encoded.

        Raises:
            RecipeError: it is written in another way.
        """
        try:
            url = urlsplit(text)
            host, port, database = url.hostname, url.port or 3306, unquote(url.path).strip("/")
        except ValueError:  # a port that is no number, brackets that do not match
            host = database = None
        if not host or not database or "/" in database or url.query or url.fragment:
            raise RecipeError(
                f"{without_password(text)}: write it as mysql://host:port/database, with user:password@ before the "
                "host (percent-encoded but for letters and digits)"
            )
        return cls(unquote(url.username or "root"), unquote(url.password or ""), host, port, database)

    def __str__(self) -> str:
        return f"mysql://{self.host}:{self.port}/{self.database}"

    def exists(self) -> bool:
        """Whether it is worth a try; only reading it tells whether it answers."""
        return True


def _as_database(value: object) -> object:
    try:
        return DatabaseAddress.parse(value) if isinstance(value, str) and value.startswith("mysql:") else value
    except RecipeError as error:
        raise ValueError(str(error)) from error


class Oqmd(_Section):
    """OQMD."""

    path: Annotated[RawPath | InstanceOf[DatabaseAddress], BeforeValidator(_as_database)] | None = Field(
        None,
        description="the SQL dump, `qmdb__v1_8__022026.sql.gz`, a folder of which the newest dump is taken, or "
        "`mysql://user:password@host:port/database`",
    )
    stress: Literal["null", "kbar"] = Field(
        "null", description="null, or take the stored numbers as kBar with VASP's sign"
    )
    initial_structures: bool = Field(
        True, description="keep the unlabelled first geometries (role `input`); else `targets` rejects them"
    )


class Vasp(_Section):
    """VASP's output files, your own or anybody's."""

    path: RawPath | None = Field(
        None, description="folder with `vasprun.xml` files at any depth, also .gz, .bz2, .xz; or one such file"
    )
    license: str | None = Field(None, description="licence of these data, for the column `license`")


class Ase(_Section):
    """Files that ASE reads, your own or anybody's."""

    path: RawPath | None = Field(
        None, description="folder with files at any depth that ASE reads, or one such file; energies and forces in them"
    )
    pattern: str = Field("*", description="names of the files to read, such as `*.extxyz`")
    license: str | None = Field(None, description="licence of these data, for the column `license`")
    functional: Literal["pbe", "pbesol", "scan", "r2scan"] | None = Field(
        None, description="of frames whose `info` names none; without either they are rejected"
    )
    run_type: Literal["GGA", "GGA+U", "PBEsol", "SCAN", "r2SCAN"] | None = Field(
        None, description="of frames whose `info` names none; says whether PBE is with +U"
    )
    prefix: str = Field(
        "REF_", description="labels with this before their names (`REF_energy`) are taken before a calculator's"
    )


class FetchMaterialsProject(_Section):
    """Where the Materials Project publishes: public S3 buckets, read anonymously."""

    layout: Literal["delta", "jsonl"] = Field(
        "delta", description="the active Delta Lake tables, or the JSON Lines files they replaced in 2026"
    )
    endpoint: Url = Field("https://s3.us-east-1.amazonaws.com", description="S3 endpoint, path-style addresses")
    region: str = Field("us-east-1", description="region of the buckets")
    parsed: str = Field("materialsproject-parsed", description="bucket of tasks and trajectories")
    build: str = Field("materialsproject-build", description="bucket of built collections, such as materials")
    run_types: tuple[str, ...] = Field(
        ("GGA", "GGA+U", "PBE", "PBE+U", "PBEsol", "SCAN", "r2SCAN"),
        description="delta: run types whose arrays are copied; rows of others keep what identifies and counts them",
    )


class FetchAlexandria(_Section):
    """Where Alexandria publishes: nginx listing pages."""

    url: Url = Field("https://alexandria.icams.rub.de/data/", description="the page that lists all data")
    layout: Literal["new", "old"] = Field(
        "new", description="new: `geo_opt_paths/DATE/pbe/`, the newest date of each; old: `pbe/geo_opt_paths/`"
    )
    sets: tuple[Literal["pbe", "pbesol", "pbe_2d", "pbe_1d"], ...] = Field(
        ("pbe", "pbesol"), description="which sets of paths; pbe_2d and pbe_1d have vacuum in the cell"
    )


class FetchOqmd(_Section):
    """Where OQMD publishes."""

    url: Url = Field("https://oqmd.org/download/", description="the download page; the newest version is taken")


class Fetch(_Section):
    """How raw files are fetched; where from stands in the sections below."""

    connections: Annotated[int, Field(ge=1, le=32)] = Field(4, description="files at a time")
    retries: Annotated[int, Field(ge=0)] = Field(8, description="times a request is repeated that gets nowhere")
    timeout: Positive = Field(60.0, description="s without an answer until a request is repeated")
    min_rate: Annotated[float, Field(ge=0)] = Field(
        1000.0, description="bytes/s over `timeout`; a slower download is started again where it was"
    )
    min_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="a newer version of a set with a smaller share of the older one's bytes is refused"
    )
    max_wait: Positive = Field(600.0, description="s, the longest wait a server may ask for (Retry-After)")
    mp: FetchMaterialsProject = Field(FetchMaterialsProject(), description="where from")
    alexandria: FetchAlexandria = Field(FetchAlexandria(), description="where from")
    oqmd: FetchOqmd = Field(FetchOqmd(), description="where from")


class Rule(_Section):
    """A rule that is on or off."""

    enabled: bool = Field(True, description="off keeps what the rule would reject")


class License(Rule):
    """The `license` rule."""

    accept: tuple[str, ...] = Field(("BY-C",), description="builder licences of MP materials to keep")


class Elements(Rule):
    """The `elements` rule."""

    exclude: dict[str, tuple[str, ...]] = Field({"alexandria": ("Yb",)}, description="elements to leave out, by source")


class ElectronicConvergence(Rule):
    """The `electronic_convergence` rule."""

    unknown: Literal["reject", "keep"] = Field(
        "reject", description="frames whose electronic steps or limit are not recorded"
    )


class Geometry(Rule):
    """The `geometry` rule."""

    min_volume: Positive = Field(0.1, description="A^3 per atom")
    min_distance: Positive = Field(0.5, description="A, between any two atoms, periodic images included")


class EnergyWindow(Rule):
    """The `energy_window` rule."""

    above: Positive = Field(1.0, description="eV/atom above the final frame")
    below: Positive = Field(0.5, description="eV/atom below the final frame")


class MaxForce(Rule):
    """The `max_force` rule."""

    enabled: bool = Field(False, description="off keeps what the rule would reject")
    threshold: Positive = Field(50.0, description="eV/A, largest norm of a force on an atom")


class PrimaryAgreement(Rule):
    """The `primary_agreement` rule."""

    tolerance: Positive = Field(0.020, description="eV/atom between final energies, both sides")


class Rules(_Section):
    """Rules in the order they run; the first that rejects a frame owns it."""

    license: License = License()
    deprecated: Rule = Rule()
    task_type: Rule = Rule()
    unsupported_functional: Rule = Rule()
    elements: Elements = Elements()
    oqmd_duplicate: Rule = Rule()
    ordered_sites: Rule = Rule()
    site_order: Rule = Rule()
    relaxation_record: Rule = Rule()
    relaxation_converged: Rule = Rule()
    targets: Rule = Rule()
    zero_forces: Rule = Rule()
    electronic_convergence: ElectronicConvergence = ElectronicConvergence()
    geometry: Geometry = Geometry()
    duplicate_frames: Rule = Rule()
    energy_window: EnergyWindow = EnergyWindow()
    max_force: MaxForce = MaxForce()
    duplicate_trajectory: Rule = Rule()
    primary_agreement: PrimaryAgreement = PrimaryAgreement()


class Annotation(_Section):
    """What is computed for each kept frame."""

    space_group: bool = Field(True, description="space group of every frame with moyopy")
    symprec: Positive = Field(1e-4, description="A, tolerance of the symmetry search")
    energy_corrected: bool = Field(True, description="MaterialsProject2020Compatibility for PBE")


def _as_address(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


class Store(_Section):
    """Where committed frames live."""

    path: Annotated[str, BeforeValidator(_as_address)] | None = Field(
        None, description="folder of a Delta Lake table, `s3://bucket/prefix`, `postgresql://user@host/database`"
    )
    work: Path | None = Field(
        None,
        description="folder for what sources prepare; by default in the store's folder, else in the user's cache",
    )


class Engine(_Section):
    """Where the work runs."""

    name: Literal["local", "dask"] = Field("local", description="processes on this machine, or dask's workers")
    workers: Annotated[int, Field(ge=0)] = Field(
        0, description="worker processes on this machine; 0 takes one per core"
    )
    scheduler: str | None = Field(None, description="dask: address of a running scheduler, `tcp://host:8786`")
    slurm: Path | None = Field(None, description="dask: TOML file that describes SLURM jobs to run workers in")
    timeout: Annotated[float, Field(ge=0)] = Field(
        0, description="dask: s without a new record after which an asset is tried on another worker; 0 waits"
    )


class Release(_Section):
    """How a release is written."""

    stress: Literal["auto", "ev", "kbar"] = Field(
        "auto", description="auto: eV/A^3 with ASE's sign, for the schema `lemat-traj` kBar with VASP's"
    )
    format: Literal["trajmill", "lemat-traj"] = Field(
        "trajmill", description="all columns, or exactly the 25 published ones"
    )
    rows_per_file: Annotated[int, Field(ge=1)] = Field(500_000, description="frames per Parquet file")


class Recipe(_Section):
    """A whole build."""

    mp: MaterialsProject = MaterialsProject()
    alexandria: Alexandria = Alexandria()
    oqmd: Oqmd = Oqmd()
    vasp: Vasp = Vasp()
    ase: Ase = Ase()
    fetch: Fetch = Fetch()
    rules: Rules = Rules()
    annotation: Annotation = Annotation()
    store: Store = Store()
    engine: Engine = Engine()
    release: Release = Release()

    def with_paths(self, paths: Mapping[str, AnyPath | None]) -> Recipe:
        """Return the recipe with these paths of sources; a source whose path is None is left out of it."""
        sections = {name: getattr(self, name).model_copy(update={"path": path}) for name, path in paths.items()}
        return self.model_copy(update=sections)

    def content(self, source: str) -> dict[str, Any]:
        """Return everything that decides what a source's rows are: its options, the frame rules, the annotations.

        Paths, sizes of parts and the number of workers are not part of it, nor are the rules that run at release.
        """
        return {
            "source": getattr(self, source).model_dump(mode="json", exclude={"path", "layout", "split", "pattern"}),
            "rules": self.rules.model_dump(mode="json", exclude={"duplicate_trajectory", "primary_agreement"}),
            "annotation": self.annotation.model_dump(mode="json"),
        }

    def content_digest(self, source: str) -> str:
        """Digest the content."""
        return digest(self.content(source))


def check_published(source: str) -> None:
    """Check that there is a source of this name whose raw files can be fetched.

    Raises:
        RecipeError: there is none, or it is for files of one's own.
    """
    if source in PUBLISHED:
        return
    if source in SOURCES:
        raise RecipeError(
            f"{source}: files of your own are nowhere to be fetched from; trajmill build --{source} FOLDER reads them "
            "where they lie"
        )
    raise RecipeError(f"no source {source}; there are: {', '.join(PUBLISHED)}")


def digest(content: dict[str, Any]) -> str:
    """Digest the content of a recipe, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


BUILT_IN: dict[str, Recipe] = {"lemat-traj": Recipe()}
"""Recipes that come with trajmill: `lemat-traj` is the published dataset's curation, corrected."""


def load(path: str | Path | None = None, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: TOML file or the name of a built-in recipe; None takes the defaults.
        settings: overrides as `section.key=value`, the value in TOML syntax (bare words are taken as strings).

    Raises:
        RecipeError: unreadable file, unknown key, bad value; says which and what is allowed.
    """
    if path is None or str(path) in BUILT_IN:
        content: dict[str, Any] = (
            {} if path is None else BUILT_IN[str(path)].model_dump(mode="python", exclude_defaults=True)
        )
        origin = "recipe"
    else:
        origin = str(path)
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(
                f"{path}: cannot be read ({error.strerror}); built-in recipes: {', '.join(BUILT_IN)}"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: not a TOML file ({error})") from error
    for setting in settings:
        _override(content, setting)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_explain(error)}") from error


def to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML, with what each key means; keys without a value are commented out."""
    lines: list[str] = []
    _write_section(recipe, "", lines)
    return "\n".join(lines).strip() + "\n"


def _write_section(section: BaseModel, name: str, lines: list[str]) -> None:
    keys = [(key, info, getattr(section, key)) for key, info in type(section).model_fields.items()]
    plain = [(key, info, value) for key, info, value in keys if not isinstance(value, BaseModel)]
    if plain:
        lines += ["", f"# {(type(section).__doc__ or '').strip()}", f"[{name}]"]
    for key, info, value in plain:
        lines.append(
            f"{key} = {_toml(value)}  # {info.description}" if value is not None else f"# {key} =  # {info.description}"
        )
    for key, _, value in keys:
        if isinstance(value, BaseModel):
            _write_section(value, f"{name}.{key}".removeprefix("."), lines)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return json.dumps(list(value))
    return json.dumps(str(value) if isinstance(value, PurePath) else value)


def _override(content: dict[str, Any], setting: str) -> None:
    """Put `section.key=value` into a parsed recipe."""
    name, equals, text = setting.partition("=")
    *sections, key = name.strip().split(".")
    if not equals or not sections:
        raise RecipeError(f"--set {setting}: write it as section.key=value, for example mp.tasks_without_material=keep")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise RecipeError(f"--set {setting}: {section} is a value, not a section")
    content[key] = value


def _explain(error: ValidationError) -> str:
    """Say the first fault of a recipe in one line, with the keys that would be known there."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        section: type[BaseModel] = Recipe
        for part in fault["loc"][:-1]:
            section = type(getattr(section(), str(part)))
        return f"unknown key {where}; known here: {', '.join(section.model_fields)}"
    return without_password(f"{where}: {fault['msg']} (got {fault.get('input')!r})")
