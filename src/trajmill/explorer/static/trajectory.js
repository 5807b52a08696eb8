// The page of one trajectory: structure and charts of the frame that is shown, facts, downloads.

import { Charts } from "./charts.js";
import { ask, byId, count, digits, formula, make, several } from "./common.js";
import { ELEMENTS } from "./elements.js";
import { groupName } from "./groups.js";
import { Structure, species } from "./structure.js";

const WHOLE = 8000; // ms that playing all frames takes, about
const FASTEST = 60; // ms a frame at least
const SLOWEST = 500;

const id = new URLSearchParams(location.search).get("id") ?? "";
let shown = { frames: {} };
let frame = 0;
let charts = null;
let structure = null;
let playing = 0;

// --- the frame that is shown

function show(next) {
  const { frames, n_frames } = shown;
  frame = Math.min(Math.max(next, 0), n_frames - 1);
  const step = frames.relaxation_step[frame];
  byId("frame").value = frame;
  byId("frame").setAttribute("aria-valuetext", `step ${step}, frame ${frame + 1} of ${n_frames}`);
  byId("where").textContent = `step ${step} · ${frame + 1}/${n_frames}`;
  byId("cif").href = download("cif", frame);
  structure?.show(frame);
  charts.show(frame);
}

function play(on) {
  clearInterval(playing);
  playing = 0;
  if (on) {
    if (frame === shown.n_frames - 1) show(0);
    const pause = Math.min(SLOWEST, Math.max(FASTEST, WHOLE / shown.n_frames));
    playing = setInterval(() => {
      show(frame + 1);
      if (frame === shown.n_frames - 1) play(false);
    }, pause);
  }
  byId("play").textContent = on ? "Pause" : "Play";
  byId("play").setAttribute("aria-pressed", String(on));
}

function listen() {
  byId("play").addEventListener("click", () => play(!playing));
  byId("first").addEventListener("click", () => (play(false), show(0)));
  byId("frame").addEventListener("input", () => (play(false), show(Number(byId("frame").value))));
  byId("forces").addEventListener("change", () => structure?.setForces(byId("forces").checked));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, button, a, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key !== " " && !by) return;
    event.preventDefault();
    if (by) play(false), show(frame + by);
    else play(!playing);
  });
}

// --- facts

const yes = (value, words = ["yes", "no"]) => (value === null ? null : words[value ? 0 : 1]);

function uValues(values) {
  if (values === null) return null;
  const parts = Object.entries(values).map(([element, u]) => `${element} ${u}`);
  return parts.length ? `${parts.join(", ")} eV` : "none";
}

/** Say how many steps have no frame: a rule turned it away, or the source never kept it. */
function gaps({ relaxation_step: steps }) {
  const missing = steps[steps.length - 1] + 1 - steps.length;
  return missing > 0 ? `${several(missing, "step")}, turned away or not kept by the source` : "none";
}

function facts(t) {
  const { frames } = t;
  const last = t.n_frames - 1;
  const of = (name, i) => frames[name]?.[i] ?? null;
  const drop = of("energy_per_atom", 0) === null || of("energy_per_atom", last) === null ? null : 1000 * (of("energy_per_atom", 0) - of("energy_per_atom", last));
  const corrected = of("energy_corrected", last);
  const groups = [of("space_group", 0), of("space_group", last)].map(groupName);
  return {
    "Material": [
      ["Formula", make("span", {}, ...formula(t.formula))], ["Cell", make("span", {}, ...formula(t.cell))], ["Atoms", count(t.n_atoms)],
      ["Space group", groups[0] === groups[1] ? groups[0] : `${groups[0]} → ${groups[1]}`],
      ["Material id", t.immutable_id], ["Source", t.source],
    ],
    "Relaxation": [
      ["Frames", count(t.n_frames)], ["Calculations", count(new Set(frames.relaxation_number).size)],
      ["Converged", yes(t.relaxation_converged)], ["Energy at the end", `${digits(of("energy", last), 4)} eV`],
      ["with corrections", corrected === null ? null : `${digits(corrected, 4)} eV`],
      ["Energy drop", drop === null ? null : `${digits(drop, 2)} meV/atom`],
    ],
    "Settings": [
      ["Functional", t.functional], ["Run type", t.run_type], ["Cut-off", t.encut === null ? null : `${t.encut} eV`],
      ["Hubbard U", uValues(t.hubbard_u)], ["Potentials", t.potentials?.join(", ") ?? null],
      ["Agrees with other sources", yes(t.cross_compatibility)],
    ],
    "Provenance": [
      ["Task", t.task_id], ["Asset", t.asset], ["Last modified", t.last_modified], ["Licence", t.license],
      ["The material's primary run", yes(t.material_origin)], ["Steps without a frame", gaps(frames)],
    ],
  };
}

function drawFacts(t, dataset) {
  const groups = facts(t);
  const versions = Object.entries(dataset.manifest?.packages ?? {}).map(([name, version]) => `${name} ${[version].flat().join(", ")}`);
  if (versions.length) groups.Provenance.push(["Built with", versions.join("; ")]);
  for (const [title, entries] of Object.entries(groups)) {
    const list = make("dl", {});
    for (const [term, value] of entries) {
      list.append(make("div", {}, make("dt", {}, term), make("dd", value === null ? { className: "unknown" } : {}, value ?? "unknown")));
    }
    byId("facts").append(make("section", { className: "card" }, make("h2", {}, title), list));
  }
  const notes = t.notes.length ? make("ul", {}, ...t.notes.map((note) => make("li", {}, note))) : make("p", { className: "hint" }, "Nothing was inferred or found odd.");
  byId("facts").append(make("section", { className: "card notes", id: "notes" }, make("h2", {}, "Curation notes"), notes));
}

function download(format, at) {
  const asked = new URLSearchParams({ id, format });
  if (at !== undefined) asked.set("frame", at);
  return `/download?${asked}`;
}

// --- the page

function drawStructure(t) {
  try {
    structure = new Structure(byId("structure"), t, new Map(ELEMENTS.map((e) => [e.symbol, e.z])));
    byId("species").replaceChildren(...species(t.symbols));
  } catch (error) {
    byId("no-structure").textContent = "The structure cannot be drawn: this browser has no WebGL.";
    console.warn(error);
  }
}

async function start() {
  const home = `/${sessionStorage.getItem("home") ?? ""}`;
  byId("back").href = byId("back-link").href = home;
  let dataset;
  try {
    [shown, dataset] = await Promise.all([ask(`/api/trajectory?id=${encodeURIComponent(id)}`), ask("/api/dataset")]);
  } catch (error) {
    byId("formula").textContent = "Not found";
    byId("error").textContent = error.message;
    return;
  }
  byId("dataset").textContent = dataset.name;
  byId("formula").replaceChildren(...formula(shown.formula));
  byId("identifier").textContent = shown.trajectory_id;
  document.title = `${shown.formula} ${shown.trajectory_id} – trajmill explorer`;
  byId("frame").max = shown.n_frames - 1;
  byId("play").disabled = byId("first").disabled = byId("frame").disabled = shown.n_frames === 1;
  for (const format of ["extxyz", "json"]) byId(format).href = download(format);
  byId("show").hidden = byId("downloads").hidden = false;
  byId("forces").disabled = !shown.frames.forces;
  charts = new Charts(byId("charts"), shown, (i) => (play(false), show(i)));
  drawFacts(shown, dataset);
  listen();
  show(0);
  await new Promise((resolve) => setTimeout(resolve)); // what takes longest comes last
  drawStructure(shown);
  structure?.show(frame);
}

start(); // modules run when the page and the scripts before them are there
