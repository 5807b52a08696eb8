"""vasprun.xml files for the tests: real calculations of `tests/data/mp`, written again in the form VASP gives them.

`python tests/vaspruns.py` makes `tests/data/vasp` anew. Numbers are those of the real runs, to the eight digits VASP
prints; of what the source does not read (k-points, eigenvalues, densities of states) there is a line or two made up.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from mp_samples import documents

DATA = Path(__file__).parent / "data"

SAMPLES = {
    # file: documents, task, which calculation of it, bytes to cut off at the end
    "Si/vasprun.xml.relax1.gz": ("derived/tasks/a2_vasp_outputs", "local-0014", 0, 0),
    "Si/vasprun.xml.relax2.gz": ("derived/tasks/a2_vasp_outputs", "local-0014", 1, 0),
    "Si/static/vasprun.xml.gz": ("derived/tasks/a2_vasp_outputs", "local-0031", 0, 0),
    "Si/hse/vasprun.xml.bz2": ("derived/tasks/a2_vasp_outputs", "local-0026", 0, 0),
    "Y2Mg3P4O16/relax_1/vasprun.xml.gz": ("double/tasks/atomate-double_vasp_outputs", "local-0502", 0, 0),
    "Y2Mg3P4O16/relax_2/vasprun.xml.gz": ("double/tasks/atomate-double_vasp_outputs", "local-0502", 1, 0),
    "YMgP2O8/vasprun.relax1.xml.gz": ("double/tasks/atomate-double_vasp_outputs", "local-0509", 0, 0),
    "YMgP2O8/vasprun.relax2.xml.gz": ("double/tasks/atomate-double_vasp_outputs", "local-0509", 1, 0),
    "Fe2O3/vasprun.xml.xz": ("derived/tasks/ptf_vasp_outputs", "local-0085", 0, 0),
    "LiFeO2/vasprun.xml.gz": ("derived/tasks/ptf_vasp_outputs", "local-0080", 0, 0),
    "V2O5/vasprun.xml.gz": ("derived/tasks/cust_vasp_outputs", "local-0071", 0, 2500),
    "Au/vasprun.xml": ("derived/tasks/a2_vasp_outputs", "local-0022", 0, 0),
}


def calculation(file: str, task: str, number: int = 0) -> dict[str, Any]:
    """Return a real calculation, by its place in the order computed."""
    found = next(d for d in documents(DATA / "mp" / f"{file}.jsonl.gz") if d["task_id"] == task)
    return found["calcs_reversed"][::-1][number]


def vasprun(calc: dict[str, Any], started: tuple[str, str] = ("2020 12 08", "09:15:16")) -> str:
    """Write a calculation as VASP does."""
    steps = calc["output"]["ionic_steps"]
    given = calc["input"]
    titles = [spec["titel"] for spec in given["potcar_spec"]]
    lines = [
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n <generator>',
        '  <i name="program" type="string">vasp </i>\n  <i name="version" type="string">5.4.4  </i>',
        f'  <i name="date" type="string">{started[0]} </i>\n  <i name="time" type="string">{started[1]} </i>',
        " </generator>\n <incar>",
        *_tags(given["incar"], "  "),
        " </incar>\n <kpoints>",
        *_varray("kpointlist", [[0.0, 0.0, 0.0]], "  "),
        *_varray("weights", [[1.0]], "  "),
        ' </kpoints>\n <parameters>\n  <separator name="general" >',
        *_tags(given["parameters"], "   "),
        "  </separator>\n </parameters>",
        *_atoms([site["species"][0]["element"] for site in steps[0]["structure"]["sites"]], titles),
        *_structure(steps[0]["structure"], ' name="initialpos"', " "),
    ]
    for step in steps:
        lines += [" <calculation>", *_step(step)]
        lines += [_UNREAD, " </calculation>"]
    lines += [*_structure(steps[-1]["structure"], ' name="finalpos"', " "), "</modeling>\n"]
    return "\n".join(lines)


_UNREAD = """  <eigenvalues>
   <array>
    <dimension dim="1">band</dimension>
    <field>eigene</field>
    <field>occ</field>
    <set><set comment="spin 1"><set comment="kpoint 1"><r>   -5.0000    1.0000 </r></set></set></set>
   </array>
  </eigenvalues>
  <dos>
   <i name="efermi">      5.00000000 </i>
   <total>
    <array><set><set comment="spin 1"><r>   -9.0000    0.0000    0.0000 </r></set></set></array>
   </total>
  </dos>"""


def _tags(tags: dict[str, Any], indent: str) -> Iterable[str]:
    for name, value in tags.items():
        values = value if isinstance(value, list) else [value]
        if not values or any(isinstance(v, (dict, list)) or v is None for v in values):
            continue
        kind, text = _written(values)
        tag = "v" if isinstance(value, list) else "i"
        yield f'{indent}<{tag}{kind} name="{name}">{text}</{tag}>'


def _written(values: Sequence[Any]) -> tuple[str, str]:
    if all(isinstance(v, bool) for v in values):
        return ' type="logical"', "".join(f" {'T' if v else 'F'}  " for v in values)
    if all(isinstance(v, int) for v in values):
        return ' type="int"', "".join(f" {v:5d}" for v in values)
    if all(isinstance(v, (int, float)) for v in values):
        return "", "".join(f" {v:15.8f}" for v in values)
    return ' type="string"', " ".join(escape(str(v), quote=False) for v in values)


def _atoms(elements: list[str], titles: list[str]) -> Iterable[str]:
    kinds = [(element, len(list(sites))) for element, sites in groupby(elements)]
    yield f" <atominfo>\n  <atoms> {len(elements):7d} </atoms>\n  <types> {len(kinds):7d} </types>"
    yield '  <array name="atoms" >\n   <dimension dim="1">ion</dimension>\n   <field type="string">element</field>'
    yield '   <field type="int">atomtype</field>\n   <set>'
    for kind, (element, n) in enumerate(kinds, 1):
        yield from [f"    <rc><c>{element:2s}</c><c>{kind:4d}</c></rc>"] * n
    yield '   </set>\n  </array>\n  <array name="atomtypes" >\n   <dimension dim="1">type</dimension>\n   <set>'
    for (element, n), title in zip(kinds, titles, strict=True):
        cells = (f"{n:4d}", f"{element:2s}", "      1.00000000", "      1.00000000", f"  {title:38s}")
        yield f"    <rc>{''.join(f'<c>{cell}</c>' for cell in cells)}</rc>"
    yield "   </set>\n  </array>\n </atominfo>"


def _varray(name: str, rows: Iterable[Sequence[float]], indent: str) -> Iterable[str]:
    yield f'{indent}<varray name="{name}" >'
    for row in rows:
        yield f"{indent} <v>{''.join(f' {x:16.8f}' for x in row)} </v>"
    yield f"{indent}</varray>"


def _structure(structure: dict[str, Any], name: str, indent: str) -> Iterable[str]:
    yield f"{indent}<structure{name} >" if name else f"{indent}<structure>"
    yield f"{indent} <crystal>"
    yield from _varray("basis", structure["lattice"]["matrix"], indent + "  ")
    yield f'{indent}  <i name="volume"> {structure["lattice"]["volume"]:16.8f} </i>'
    yield from _varray("rec_basis", [[0.0, 0.0, 0.0]] * 3, indent + "  ")
    yield f"{indent} </crystal>"
    yield from _varray("positions", [site["abc"] for site in structure["sites"]], indent + " ")
    yield f"{indent}</structure>"


def _energies(energies: dict[str, Any], indent: str) -> Iterable[str]:
    yield f"{indent}<energy>"
    for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy"):
        if energies.get(name) is not None:
            yield f'{indent} <i name="{name}"> {energies[name]:16.8f} </i>'
    yield f"{indent}</energy>"


def _step(step: dict[str, Any]) -> Iterable[str]:
    for electronic in step["electronic_steps"]:
        yield '  <scstep>\n   <time name="total">    0.01    0.01</time>'
        yield from _energies(electronic, "   ")
        yield "  </scstep>"
    yield from _structure(step["structure"], "", "  ")
    yield from _varray("forces", step["forces"], "  ")
    yield from _varray("stress", step["stress"], "  ")
    yield from _energies(step, "  ")
    yield '  <time name="totalsc">    0.10    0.10</time>'


def packed(name: str, text: str) -> bytes:
    """Compress a file as its name says, the same bytes each time."""
    import bz2
    import lzma

    content = text.encode("latin-1")
    if name.endswith(".gz"):
        return gzip.compress(content, 9, mtime=0)
    return {"bz2": bz2.compress, "xz": lzma.compress}.get(name.rpartition(".")[2], bytes)(content)


def sample(name: str) -> str:
    """Return the text of a sample."""
    file, task, number, cut = SAMPLES[name]
    text = vasprun(calculation(file, task, number))
    return text[: len(text) - cut]


def main() -> None:
    """Write the samples and say where each comes from."""
    rows = ["file\tfrom\ttask\tcalculation\tholds"]
    for name, (file, task, number, cut) in SAMPLES.items():
        path = DATA / "vasp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(name, sample(name)))
        steps = len(calculation(file, task, number)["output"]["ionic_steps"])
        holds = (
            "GENERATED by tests/vaspruns.py from that real calculation (tests/data/mp/ORIGIN.tsv says whose, and under "
            f"which licence): real numbers, {steps} ionic steps, not VASP's own bytes"
            + (f"; the last {cut} bytes are cut off" if cut else "")
        )
        rows.append(f"{name}\ttests/data/mp/{file}.jsonl.gz\t{task}\t{number}\t{holds}")
    (DATA / "vasp" / "ORIGIN.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
