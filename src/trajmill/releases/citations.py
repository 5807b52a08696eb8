"""Whose data a release holds: licences, attribution, and what to cite."""

from __future__ import annotations

from typing import Any

ATTRIBUTION = {
    "mp": "[Materials Project](https://materialsproject.org), CC BY 4.0 (its licence BY-C); a part is CC BY-NC 4.0 "
    "(its BY-NC), left out unless the recipe accepts it.",
    "alexandria": "[Alexandria](https://alexandria.icams.rub.de), CC BY 4.0.",
    "oqmd": "[Open Quantum Materials Database](https://oqmd.org), CC BY 4.0.",
}

CITATIONS = {
    "mp": """@article{jain2013commentary,
  title = {Commentary: The Materials Project: A materials genome approach to accelerating materials innovation},
  author = {Jain, Anubhav and Ong, Shyue Ping and Hautier, Geoffroy and Chen, Wei and Richards, William Davidson and
            Dacek, Stephen and Cholia, Shreyas and Gunter, Dan and Skinner, David and Ceder, Gerbrand and
            Persson, Kristin A.},
  journal = {APL Materials}, volume = {1}, pages = {011002}, year = {2013}, doi = {10.1063/1.4812323}
}""",
    "alexandria": """@article{schmidt2024improving,
  title = {Improving machine-learning models in materials science through large datasets},
  author = {Schmidt, Jonathan and Cerqueira, Tiago F. T. and Romero, Aldo H. and Loew, Antoine and
            J{\\"a}ger, Fabian and Wang, Hai-Chen and Botti, Silvana and Marques, Miguel A. L.},
  journal = {Materials Today Physics}, volume = {48}, pages = {101560}, year = {2024},
  doi = {10.1016/j.mtphys.2024.101560}
}""",
    "oqmd": """@article{kirklin2015open,
  title = {The Open Quantum Materials Database (OQMD): assessing the accuracy of DFT formation energies},
  author = {Kirklin, Scott and Saal, James E. and Meredig, Bryce and Thompson, Alex and Doak, Jeff W. and
            Aykol, Muratahan and R{\\"u}hl, Stephan and Wolverton, Chris},
  journal = {npj Computational Materials}, volume = {1}, pages = {15010}, year = {2015},
  doi = {10.1038/npjcompumats.2015.10}
}""",
}
"""BibTeX by source."""

LEMAT_TRAJ = """@misc{ramlaoui2025lemattraj,
  title = {LeMat-Traj: A Scalable and Unified Dataset of Materials Trajectories for Atomistic Modeling},
  author = {Ramlaoui, Ali and others}, year = {2025}, eprint = {2508.20875}, archivePrefix = {arXiv}
}"""

TRAJMILL = """@software{{trajmill,
  title = {{trajmill: one clean dataset of DFT relaxation trajectories from open materials databases}},
  author = {{{{The trajmill developers}}}}, version = {{{versions}}}
}}"""


UNLICENSED = "none stated"
"""Stands for records whose source states no licence."""

LICENCES = frozenset({"BY-C", "BY-NC", "CC-BY-4.0", "CC-BY-NC-4.0"})
"""What the column `license` may say for one of these names of the Hub to stand for it."""

LICENCE_PAGES = {
    "cc-by-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
}


def bibtex(manifest: dict[str, Any]) -> str:
    """Return what to cite for a release: its sources, LeMat-Traj for the data model, trajmill."""
    sources = sorted({row["source"] for row in manifest["contents"]})
    versions = ", ".join(manifest["packages"].get("trajmill", []))
    cited = [CITATIONS[s] for s in sources if s in CITATIONS]
    return "\n\n".join([*cited, LEMAT_TRAJ, TRAJMILL.format(versions=versions)])


def licence_of(manifest: dict[str, Any]) -> str:
    """Return the strictest licence among the records of a release, by the Hub's name.

    It is `unknown` when some have none, and `other` when one of somebody's own files is under another than the
    databases', which no name stands for.
    """
    names = manifest["licences"]
    if UNLICENSED in names:
        return "unknown"
    if any(name not in LICENCES for name in names):
        return "other"
    return "cc-by-nc-4.0" if any("NC" in name for name in names) else "cc-by-4.0"
