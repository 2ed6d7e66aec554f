"""Random alloys labelled with effective medium theory (EMT; Jacobsen, Stoltze & Norskov 1996) by ASE.

Worker processes import this: it must stay free of torch.
"""

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

PURE = {
    "Al": (3.994274, -0.004882684533),
    "Ni": (3.487144, -0.013306892310),
    "Cu": (3.589826, -0.007036492052),
    "Pd": (3.878741, -0.000269925335),
    "Ag": (4.063553, -0.000366862539),
    "Pt": (3.921801, -0.000149527060),
    "Au": (4.056166, -0.000135141247),
}
"""Relaxed fcc metals in EMT: lattice constant in angstrom, energy in eV/atom."""

PARENTS = (
    *((False, repeats) for repeats in ((1, 1, 1), (2, 1, 1), (3, 1, 1), (2, 2, 1), (2, 2, 2))),
    *((True, repeats) for repeats in ((1, 1, 1), (2, 1, 1))),
)
"""Cells: whether of the conventional (cubic) fcc cell, and how often it is repeated along each vector."""

MAX_ENERGY = 0.8  # eV/atom: what lies above is drawn again
TARGET, UNIT = "formation_energy", "eV/atom"
CARD = (
    "Formation energies (eV/atom, against the relaxed pure metals) of small random fcc alloys of Al, Ni, Cu, Pd, Ag, "
    "Pt and Au, strained and rattled, labelled on this machine with ASE's effective medium theory. EMT is a toy "
    "(Ni3Al comes out with the wrong sign): a score here tells how well a model learns this potential, nothing about "
    "real alloys, and must not be compared with published ones."
)


def emt_alloy(seed: int, index: int) -> Atoms:
    """Makes and labels one alloy of a data set: a pure function of the seed and the index.

    Returns:
        The crystal; `info` holds its formation energy in eV/atom.
    """
    rng = np.random.default_rng((seed, index))
    while True:
        atoms = _random_alloy(rng)
        energy = formation_energy(atoms)
        if energy <= MAX_ENERGY:
            atoms.info[TARGET] = energy
            return atoms


def formation_energy(atoms: Atoms) -> float:
    """Returns the energy in eV/atom against the relaxed pure metals."""
    energy: float = EMT().get_potential_energy(atoms)  # type: ignore[no-untyped-call]
    return float(energy - sum(PURE[symbol][1] for symbol in atoms.symbols)) / len(atoms)


def _random_alloy(rng: np.random.Generator) -> Atoms:
    cubic, repeats = PARENTS[rng.integers(len(PARENTS))]
    elements = rng.choice(list(PURE), size=rng.choice([1, 2, 3], p=[0.1, 0.5, 0.4]), replace=False)
    atoms: Atoms = bulk("X", "fcc", a=1.0, cubic=cubic) * repeats
    atoms.symbols[:] = rng.choice(elements, size=len(atoms), p=rng.dirichlet(np.ones(len(elements))))
    lattice_constant = np.mean([PURE[symbol][0] for symbol in atoms.symbols]) * (1 + rng.uniform(-0.04, 0.06))
    strain = np.triu(rng.normal(0.0, 0.02, (3, 3)))
    strain += np.triu(strain, 1).T
    cell_33 = lattice_constant * atoms.cell.array @ (np.eye(3) + strain)
    atoms.set_cell(cell_33, scale_atoms=True)  # type: ignore[no-untyped-call]
    atoms.positions += rng.normal(size=(len(atoms), 3)) * rng.uniform(0.0, 0.12)
    return atoms
