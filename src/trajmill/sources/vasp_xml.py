"""One vasprun.xml as arrays, read as a stream.

VASP writes this file by machine, always in the same form, and most of it is eigenvalues and densities of states that
nobody asks for here. So the text is cut at the few tags that matter and the rest is skipped unparsed: a tenth of the
time of an XML parser, memory that does not depend on what is skipped, and a file that is cut off or holds an unescaped
`&` can be read as far as it goes. Tests compare the outcome with pymatgen's `Vasprun`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from html import unescape
from typing import Any

import numpy as np

from trajmill.elements import NUMBERS
from trajmill.sources.vasp_inputs import CalculationInput
from trajmill.trajectory import FloatArray, IntArray

STEP = b"<calculation>"
"""What an ionic step begins with."""

_MARKS = (b"calculation", b"/calculation", b"/modeling")
"""Mark a place."""

_SKIPPED = (b"eigenvalues", b"dos", b"projected")
"""Large, and of no use here."""

_TAG = re.compile(
    rb'<(varray(?= name="(?:forces|stress)")|generator|incar|parameters|atominfo|structure|scstep|energy|/?calculation'
    rb"|/modeling|" + b"|".join(_SKIPPED) + rb')(?: name="(\w+)")?(?: [^<>]*)?>'
)
_ITEM = re.compile(r"<(i|v)\s([^>]*)>([^<]*)</\1>")
_NAME = re.compile(r'name="([^"]*)"')
_TYPE = re.compile(r'type="([^"]*)"')
_ROW = re.compile(r"<rc>(.*?)</rc>", re.DOTALL)
_CELL = re.compile(r"<c>(.*?)</c>", re.DOTALL)
_NO_TAGS = bytes.maketrans(b"<v>/", b"    ")


@dataclass(frozen=True, kw_only=True)
class VaspRun:
    """What a vasprun.xml says; energies eV, lengths A, forces eV/A, stress kBar with VASP's sign.

    Attributes:
        given: tags and potentials.
        elements: symbol of each site.
        started: when VASP was started, `2023-05-04T12:30:00`, on the clock of that machine; None where not written.
        n_frames: ionic steps that begin in the file, counted on its bytes.
        lattice: (n, 3, 3), of the n ionic steps that are complete.
        fractional: (n, n_atoms, 3).
        energy: (n,) free energy, as written: with an outer pressure (PSTRESS) it is an enthalpy.
        energy_sigma0: (n,) extrapolated to zero smearing.
        forces: (n, n_atoms, 3).
        stress: (n, 3, 3).
        electronic_steps: (n,) how many each took, -1 where none is written.
        faults: what could not be read, by ionic step; NaN stands there.
        problem: why the file does not come to its end, empty when it does.
    """

    given: CalculationInput
    elements: list[str]
    started: str | None
    n_frames: int
    lattice: FloatArray
    fractional: FloatArray
    energy: FloatArray
    energy_sigma0: FloatArray
    forces: FloatArray
    stress: FloatArray
    electronic_steps: IntArray
    faults: dict[int, str]
    problem: str

    def __len__(self) -> int:
        return len(self.energy)


@dataclass
class _Step:
    """The pieces of one ionic step, and the last of its electronic steps."""

    pieces: dict[str, bytes] = field(default_factory=dict)
    electronic: bytes = b""
    electronic_steps: int = 0


@dataclass
class _Reader:
    """Takes pieces in the order of the file and puts arrays together."""

    texts: dict[str, str] = field(default_factory=dict)
    elements: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    ended: bool = False
    step: _Step | None = None
    rows: list[tuple[FloatArray, ...]] = field(default_factory=list)
    faults: dict[int, str] = field(default_factory=dict)

    def take(self, tag: str, name: str, piece: bytes) -> None:
        """Take the next piece."""
        step = self.step
        if tag == "calculation":
            self.step = _Step()
        elif tag == "/modeling":
            self.ended = True
        elif step is not None:
            if tag == "/calculation":
                self.rows.append(self._frame(step))
                self.step = None
            elif tag == "scstep":
                step.electronic, step.electronic_steps = piece, step.electronic_steps + 1
            else:
                step.pieces[name if tag == "varray" else tag] = piece
        elif tag == "atominfo" and not self.elements:
            self._atoms(piece.decode("latin-1"))
        elif tag in ("generator", "incar", "parameters"):
            self.texts[tag] = piece.decode("latin-1")

    def _atoms(self, text: str) -> None:
        """Read the element of each site; where VASP cuts its name (`r ` for Zr), the potential's has it."""
        sites, _, types = text.partition('name="atomtypes"')
        atoms, kinds = ([_CELL.findall(row) for row in _ROW.findall(part)] for part in (sites, types))
        self.titles = [kind[4].strip() for kind in kinds if len(kind) > 4]
        of_potentials = [title.split()[1].partition("_")[0] if " " in title else "" for title in self.titles]
        for cells in atoms:
            symbol, kind = cells[0].strip(), cells[-1].strip()
            known = symbol in NUMBERS or not kind.isdigit() or int(kind) > len(of_potentials)
            self.elements.append(symbol if known else of_potentials[int(kind) - 1])

    def _frame(self, step: _Step) -> tuple[FloatArray, ...]:
        """Read the numbers of an ionic step."""
        faults: dict[str, str] = {}
        lattice, fractional = self._structure(step.pieces.get("structure", b""), faults)
        forces = _numbers(step.pieces.get("forces", b""), (len(self.elements), 3), "forces", faults)
        stress = _numbers(step.pieces.get("stress", b""), (3, 3), "stress", {})  # a bad stress costs the label only
        free, sigma0 = (_value(step.electronic, name) for name in (b"e_fr_energy", b"e_0_energy"))
        total = _value(step.pieces.get("energy", b""), b"e_fr_energy")
        # the ionic step's own e_0_energy is none: VASP 5 writes the electronic entropy there
        total = free if np.isnan(total) else total
        energies = np.array([total, total + (sigma0 - free), step.electronic_steps or -1])
        if faults:
            self.faults[len(self.rows)] = next(iter(faults.values()))
        return lattice, fractional, forces, stress, energies

    def _structure(self, piece: bytes, faults: dict[str, str]) -> tuple[FloatArray, FloatArray]:
        if not piece:
            faults["structure"] = "no structure"
        cell, sites = (_varray(piece, name) for name in (b"basis", b"positions"))
        return _numbers(cell, (3, 3), "lattice", faults), _numbers(sites, (len(self.elements), 3), "positions", faults)


def read_vasprun(chunks: Iterable[bytes]) -> VaspRun:
    """Read a vasprun.xml.

    Args:
        chunks: its text. What they raise when the file is damaged ends it; what came before is read.

    Raises:
        OSError: the file could not be read at all, which says nothing about its content.
    """
    reader, counting = _Reader(), _Counting(chunks)
    for tag, name, piece in _pieces(counting):
        if not reader.ended:
            reader.take(tag, name, piece)
    problem = counting.problem or ("" if reader.ended else "the file ends before VASP did")
    if not problem and counting.steps > len(reader.rows):
        problem = "steps without an end, or another run in the same file"
    n, n_atoms = len(reader.rows), len(reader.elements)
    shapes = ((3, 3), (n_atoms, 3), (n_atoms, 3), (3, 3), (3,))
    columns = zip(*reader.rows, strict=True) if n else ([] for _ in shapes)
    lattice, fractional, forces, stress, energies = (
        np.array(list(column), np.float64).reshape(n, *shape) for column, shape in zip(columns, shapes, strict=True)
    )
    parameters, incar = (_tags(reader.texts.get(name, "")) for name in ("parameters", "incar"))
    generator = _tags(reader.texts.get("generator", ""))
    return VaspRun(
        given=CalculationInput(incar=incar, parameters=parameters, potcar_spec=[{"titel": t} for t in reader.titles]),
        elements=reader.elements,
        started=_date(generator.get("date"), generator.get("time")),
        n_frames=counting.steps,
        lattice=lattice,
        fractional=fractional,
        energy=energies[:, 0],
        energy_sigma0=energies[:, 1],
        forces=forces,
        stress=stress,
        electronic_steps=energies[:, 2].astype(np.int32),
        faults=reader.faults,
        problem=problem,
    )


class _Counting:
    """Hands chunks on, counts the ionic steps that begin in them and notes why there are no more."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self.steps, self.problem = chunks, 0, ""

    def __iter__(self) -> Iterator[bytes]:
        tail = b""
        try:
            for chunk in self._chunks:
                self.steps += (tail + chunk).count(STEP)
                tail = (tail + chunk)[1 - len(STEP) :]  # a tag may lie across two chunks
                yield chunk
        except Exception as error:  # each decompressor has its own
            if getattr(error, "errno", None):  # the disk's fault, not the file's: to be tried again
                raise
            self.problem = f"damaged or truncated file: {error or type(error).__name__}"


def _pieces(chunks: Iterable[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """Cut out of the text what is wanted of it, holding no more than one piece.

    Yields:
        The tag, its name where it has one, what stands up to its end; nothing for tags that only mark a place.
    """
    buffer = bytearray()
    skipped_to = b""
    for chunk in chunks:
        buffer += chunk
        at = 0
        while True:
            if skipped_to:
                end = buffer.find(skipped_to, at)
                if end < 0:
                    at = max(at, len(buffer) - len(skipped_to))  # it may lie across two chunks
                    break
                at, skipped_to = end + len(skipped_to), b""
            found = _TAG.search(buffer, at)
            if found is None:
                at = max(at, len(buffer) - 100)  # likewise
                break
            tag, name, begin = found[1], (found[2] or b"").decode(), found.end()
            closing = b"</" + tag + b">"
            if tag in _SKIPPED:
                at, skipped_to = begin, closing
            elif tag in _MARKS:
                yield tag.decode(), name, b""
                at = begin
            else:
                end = buffer.find(closing, begin)
                following = buffer.find(STEP, begin, end if end >= 0 else len(buffer))
                if following >= 0:  # it has no end of its own; were that waited for, all that follows would be held
                    at = following
                elif end >= 0:
                    yield tag.decode(), name, bytes(buffer[begin:end])
                    at = end + len(closing)
                else:
                    at = found.start()
                    break
        del buffer[:at]


def _varray(piece: bytes, name: bytes) -> bytes:
    """Return what is between the tags of an array in a piece."""
    begin = piece.find(b'<varray name="' + name)
    begin = piece.find(b">", begin) + 1 if begin >= 0 else len(piece)
    return piece[begin : piece.find(b"</varray>", begin)]


def _numbers(text: bytes, shape: tuple[int, int], name: str, faults: dict[str, str]) -> FloatArray:
    """Read the numbers of an array; stars, as Fortran writes what has no room, are NaN, as is all of a ragged one."""
    words = text.translate(_NO_TAGS).split()
    size = shape[0] * shape[1]
    if len(words) != size:
        if words:
            faults[name] = f"{name} has {len(words)} numbers, expected {size}"
        return np.full(shape, np.nan)
    try:
        return np.fromiter(map(float, words), np.float64, size).reshape(shape)
    except ValueError:
        return np.array([_number(word) for word in words]).reshape(shape)


def _number(word: bytes | str) -> float:
    try:
        return float(word)
    except ValueError:
        return np.nan


def _value(piece: bytes, name: bytes) -> float:
    """Return an energy by its name."""
    _, _, rest = piece.partition(b'name="' + name + b'">')
    return _number(rest.partition(b"<")[0])


def _tags(text: str) -> dict[str, Any]:
    """Read tags and their values, lists where VASP has lists; a value that is none of its type is None."""
    tags: dict[str, Any] = {}
    for kind, attributes, written in _ITEM.findall(text):
        if name := _NAME.search(attributes):
            found = _TYPE.search(attributes)
            convert = _TYPES.get(found[1] if found else "", str.strip)
            value = unescape(written)
            values = convert(value) if kind == "i" else [convert(word) for word in value.split()]
            tags.setdefault(name[1], values)  # some come again among those of response functions, with other values
    return tags


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _real(text: str) -> float | None:
    value = _number(text)
    return None if np.isnan(value) else value


_TYPES: dict[str, Callable[[str], Any]] = {
    "": _real,
    "int": _integer,
    "logical": lambda text: text.strip().strip(".").upper().startswith("T"),
    "string": str.strip,
}
"""How a value is read, by what VASP says it is."""


def _date(date: Any, time: Any) -> str | None:
    """Return `2023 05 04` and `12:30:00` as one ISO time."""
    try:
        return datetime.strptime(f"{date} {time}", "%Y %m %d %H:%M:%S").isoformat()
    except ValueError:
        return None
