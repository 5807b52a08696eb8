"""Follow one relaxation of a release as ASE Atoms: `python examples/read_release.py demo/release mp-1201400-pbe`."""

import sys

import trajmill

folder, trajectory = sys.argv[1:]
for atoms in trajmill.open(folder).atoms():
    if atoms.info["trajectory_id"] == trajectory:
        step = f"stage {atoms.info['relaxation_number']} step {atoms.info['relaxation_step']:2}"
        energy, stress = atoms.get_potential_energy() / len(atoms), atoms.get_stress()[:3].mean()
        print(f"{step}: {energy:.4f} eV/atom, stress {stress:+.5f} eV/A^3, {atoms.get_volume():.1f} A^3")
