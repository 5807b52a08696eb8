"""The release's description for machines: Croissant 1.0 (MLCommons), schema.org in JSON-LD."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from trajmill.releases.citations import LICENCE_PAGES, bibtex, licence_of

CROISSANT = "croissant.json"

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "recordSet": "cr:recordSet",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The one that the standard asks every description to carry."""

PARQUET = "application/x-parquet"


def croissant(manifest: dict[str, Any], schema: pa.Schema, folder: Path) -> dict[str, Any]:
    """Describe a release.

    Args:
        manifest: what the release holds, as in `trajmill.json`.
        schema: its columns.
        folder: where its shards are; their paths in the description are relative to it.
    """
    sources = sorted({row["source"] for row in manifest["contents"]})
    shards = {name: sorted((folder / name).glob("*-of-*.parquet")) for name in manifest["frames"]}
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": "Relaxation trajectories",
        "description": f"{sum(manifest['frames'].values()):,} frames of DFT relaxations from {', '.join(sources)}: "
        f"structures, energies, forces and stresses (in {manifest['stress_unit']}).",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": f"{manifest['store_version']}.0.0",  # the standard asks for three numbers
        "license": LICENCE_PAGES.get(licence_of(manifest), licence_of(manifest)),
        "citeAs": bibtex(manifest),
        "distribution": [
            part
            for name, files in shards.items()
            for part in (*(_file_object(f, folder) for f in files), _file_set(name))
        ],
        "recordSet": [_record_set(name, n, schema) for name, n in manifest["frames"].items()],
    }


def _file_object(file: Path, folder: Path) -> dict[str, Any]:
    name = file.relative_to(folder).as_posix()
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{file.stat().st_size} B",
        "encodingFormat": PARQUET,
        "sha256": digest,
    }


def _file_set(name: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": f"{name}-files",
        "description": f"The shards of {name}.",
        "encodingFormat": PARQUET,
        "includes": f"{name}/*.parquet",
    }


def _record_set(name: str, n_frames: int, schema: pa.Schema) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": f"{n_frames:,} frames; those of a trajectory follow each other.",
        "key": {"@id": f"{name}/id"},
        "field": [_field(name, column) for column in schema],
    }


def _field(record_set: str, column: pa.Field) -> dict[str, Any]:
    metadata = {k.decode(): v.decode() for k, v in column.metadata.items()}
    unit = f" Unit: {metadata['unit']}." if metadata["unit"] else ""
    dtype, depth = column.type, 0
    while pa.types.is_list(dtype):
        dtype, depth = dtype.value_type, depth + 1
    return {
        "@type": "cr:Field",
        "@id": f"{record_set}/{column.name}",
        "name": column.name,
        "description": metadata["description"] + unit,
        "dataType": _data_type(dtype),
        **({"repeated": True} if depth else {}),
        "source": {"fileSet": {"@id": f"{record_set}-files"}, "extract": {"column": column.name}},
    }


def _data_type(dtype: pa.DataType) -> str:
    if pa.types.is_boolean(dtype):
        return "sc:Boolean"
    if pa.types.is_integer(dtype):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(dtype) else "sc:Text"
