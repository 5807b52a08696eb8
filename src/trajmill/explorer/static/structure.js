// The crystal, drawn by 3Dmol.js: the atoms of one frame, bonds, the cell, and forces where they are asked for.

/* global $3Dmol */
import { make } from "./common.js";

const EDGE = 0.02; // of a lattice vector: an atom so near to a face is drawn on the opposite one too
const BOND = 1.15; // times the sum of covalent radii
const CATIONS = new Set("Li Na K Rb Cs Be Mg Ca Sr Ba".split(" ")); // not bonded to each other in compounds
const LONGEST = 3; // A, the arrow of the largest force of the trajectory
const FILL = 0.9; // share of the room that the structure takes at first
const AXES = ["#d33f49", "#2e9e5b", "#3b76d6"]; // a, b, c

// covalent radii in A, Cordero et al. 2008, by atomic number from 1
const RADII = `
0.31 0.28 1.28 0.96 0.84 0.76 0.71 0.66 0.57 0.58 1.66 1.41 1.21 1.11 1.07 1.05 1.02 1.06 2.03 1.76 1.70 1.60 1.53 1.39
1.39 1.32 1.26 1.24 1.32 1.22 1.22 1.20 1.19 1.20 1.20 1.16 2.20 1.95 1.90 1.75 1.64 1.54 1.47 1.46 1.42 1.39 1.45 1.44
1.42 1.39 1.39 1.38 1.39 1.40 2.44 2.15 2.07 2.04 2.03 2.01 1.99 1.98 1.98 1.96 1.94 1.92 1.92 1.89 1.90 1.87 1.87 1.75
1.70 1.62 1.51 1.44 1.41 1.36 1.36 1.32 1.45 1.46 1.48 1.40 1.50 1.50 2.60 2.21 2.15 2.06 2.00 1.96 1.90 1.87 1.80 1.69
`.trim().split(/\s+/).map(Number);

const dark = matchMedia("(prefers-color-scheme: dark)");
const background = () => (dark.matches ? "#161d21" : "#ffffff");
const plus = (a, b) => a.map((x, i) => x + b[i]);
const combine = (lattice, n) => [0, 1, 2].map((k) => n[0] * lattice[0][k] + n[1] * lattice[1][k] + n[2] * lattice[2][k]);
const point = ([x, y, z]) => ({ x, y, z });

function inverse([a, b, c]) {
  const cross = (u, v) => [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
  const [bc, ca, ab] = [cross(b, c), cross(c, a), cross(a, b)];
  const volume = a[0] * bc[0] + a[1] * bc[1] + a[2] * bc[2];
  return [bc, ca, ab].map((row) => row.map((x) => x / volume));
}

/** Choose, once for all frames, which periodic images are drawn: [site, shift], so that none jumps while it plays. */
function images(lattice, positions) {
  const rows = inverse(lattice);
  return positions.flatMap((position, site) => {
    const fraction = rows.map((row) => row[0] * position[0] + row[1] * position[1] + row[2] * position[2]);
    const home = fraction.map((x) => -Math.floor(x + EDGE));
    const shifts = fraction.map((x, k) => (x + home[k] < EDGE ? [home[k], home[k] + 1] : [home[k]]));
    return shifts[0].flatMap((i) => shifts[1].flatMap((j) => shifts[2].map((k) => ({ site, shift: [i, j, k] }))));
  });
}

export class Structure {
  /** Draw the first frame of a trajectory. Throws where the browser has no WebGL. */
  constructor(place, trajectory, numbers) {
    this.place = place;
    this.trajectory = trajectory;
    this.withForces = false;
    this.sizes = new Map();
    const { lattice, positions, max_force } = trajectory.frames;
    this.images = images(lattice[0], positions[0]);
    this.salt = trajectory.symbols.some((symbol) => !CATIONS.has(symbol));
    this.radii = this.images.map(({ site }) => RADII[numbers.get(trajectory.symbols[site]) - 1] ?? 1.5);
    this.perForce = LONGEST / Math.max(1e-9, ...max_force.filter((f) => f !== null));
    this.viewer = $3Dmol.createViewer(place, { antialias: true, orthographic: true, backgroundColor: background() });
    if (!this.viewer) throw new Error("no WebGL");
    dark.addEventListener("change", () => (this.viewer.setBackgroundColor(background()), this.draw()));
    new ResizeObserver(() => this.viewer.resize()).observe(place);
    this.frame = 0;
    this.build();
    this.viewer.zoomTo();
    this.viewer.rotate(-80, "x");
    this.viewer.rotate(-15, "y");
    this.fit();
    this.viewer.render();
    place.dataset.frame = 0;
  }

  /** Make the structure as large as the room allows for all frames: 3Dmol.js leaves much of it free. */
  fit() {
    const { left, top, width, height } = this.place.getBoundingClientRect();
    const n = this.trajectory.n_frames;
    const some = n > 40 ? Array.from({ length: 40 }, (_, i) => Math.round((i * (n - 1)) / 39)) : [...Array(n).keys()];
    const seen = this.viewer.modelToScreen(some.flatMap((frame) => this.places(frame).map(point)));
    const across = Math.max(...seen.map(({ x }) => Math.abs(x - scrollX - left - width / 2)));
    const up = Math.max(...seen.map(({ y }) => Math.abs(y - scrollY - top - height / 2)));
    const radius = 14; // px, of an atom
    const by = FILL * Math.min(width / 2 / (across + radius), height / 2 / (up + radius));
    this.viewer.zoom(Math.min(2.5, by));
  }

  /** Return where the atoms of a frame are, those of periodic images included. */
  places(frame) {
    const { lattice, positions } = this.trajectory.frames;
    return this.images.map(({ site, shift }) => plus(positions[frame][site], combine(lattice[frame], shift)));
  }

  show(frame) {
    if (frame === this.frame) return;
    this.frame = frame;
    this.draw();
  }

  draw() {
    this.build();
    this.viewer.render();
    this.place.dataset.frame = this.frame;
  }

  /** Put atoms, bonds, cell and forces of the frame in place. */
  build() {
    const { frame } = this;
    const { symbols, frames } = this.trajectory;
    const lattice = frames.lattice[frame];
    const places = this.places(frame);
    const atoms = places.map((at, i) => ({ elem: symbols[this.images[i].site], ...point(at), bonds: [], bondOrder: [] }));
    this.bond(atoms, places);
    this.viewer.removeAllModels();
    this.viewer.removeAllShapes();
    const model = this.viewer.addModel();
    model.addAtoms(atoms);
    atoms.forEach(({ elem }, i) => this.sizes.set(elem, 0.22 + 0.27 * this.radii[i]));
    for (const [elem, radius] of this.sizes) {
      model.setStyle({ elem }, { sphere: { radius, colorscheme: "Jmol" }, stick: { radius: 0.09, colorscheme: "Jmol" } });
    }
    this.cell(lattice);
    if (this.withForces && frames.forces) this.arrows(places, frames.forces[frame]);
  }

  bond(atoms, places) {
    for (let i = 0; i < atoms.length; i++) {
      for (let j = i + 1; j < atoms.length; j++) {
        if (this.salt && CATIONS.has(atoms[i].elem) && CATIONS.has(atoms[j].elem)) continue;
        const most = BOND * (this.radii[i] + this.radii[j]);
        const [x, y, z] = [0, 1, 2].map((k) => places[i][k] - places[j][k]);
        if (x * x + y * y + z * z < most * most) {
          atoms[i].bonds.push(j);
          atoms[j].bonds.push(i);
          atoms[i].bondOrder.push(1);
          atoms[j].bondOrder.push(1);
        }
      }
    }
  }

  cell(lattice) {
    for (let k = 0; k < 3; k++) {
      for (const [i, j] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
        const from = [0, 0, 0];
        from[(k + 1) % 3] = i;
        from[(k + 2) % 3] = j;
        const start = combine(lattice, from);
        const axis = i + j === 0;
        const color = axis ? AXES[k] : dark.matches ? "#8fa3ad" : "#78909c";
        const spec = { start: point(start), end: point(plus(start, lattice[k])), color };
        if (axis) this.viewer.addCylinder({ ...spec, radius: 0.05, fromCap: 1, toCap: 1 });
        else this.viewer.addLine(spec);
      }
    }
  }

  arrows(places, forces) {
    places.forEach((at, i) => {
      const force = forces[this.images[i].site].map((x) => x * this.perForce);
      if (Math.hypot(...force) < 0.05) return;
      this.viewer.addArrow({ start: point(at), end: point(plus(at, force)), radius: 0.07, mid: 0.75, color: "#e65100" });
    });
  }

  /** Show or hide forces. */
  setForces(on) {
    this.withForces = on;
    this.draw();
  }
}

/** Return a key of the elements, with the colors they are drawn in. */
export function species(symbols) {
  return [...new Set(symbols)].map((symbol) => {
    const dot = make("i", {});
    const value = $3Dmol.elementColors.Jmol[symbol] ?? 0xff1493;
    dot.style.background = `#${value.toString(16).padStart(6, "0")}`;
    return make("span", {}, dot, symbol);
  });
}
