"""Follow one relaxation of a release, frame by frame, as ASE Atoms: `python examples/read_release.py demo/release`."""

import sys

import trajmill

dataset = trajmill.open(sys.argv[1], "compatible_pbe", source="mp")
first = None
for atoms in dataset.atoms():
    first = first or atoms.info["trajectory_id"]
    if atoms.info["trajectory_id"] != first:
        break
    energy = atoms.get_potential_energy() / len(atoms)
    pressure = -atoms.get_stress()[:3].mean()
    print(f"{atoms.info['id']}: {atoms.symbols}, {energy:.6f} eV/atom, pressure {pressure:+.6f} eV/A^3")
