// The first page: what is wanted, and a table of the trajectories that match.

import { ask, byId, count, digits, formula, make } from "./common.js";
import { ELEMENTS } from "./elements.js";
import { groupName } from "./groups.js";

const SYSTEMS = {
  triclinic: [1, 2], monoclinic: [3, 15], orthorhombic: [16, 74], tetragonal: [75, 142],
  trigonal: [143, 167], hexagonal: [168, 194], cubic: [195, 230],
};
const FIELDS = ["source", "functional", "system", "space_group", "min_sites", "max_sites", "filter"];
const WAIT = 250; // ms of no typing before the server is asked

const COLUMNS = [
  { sort: "formula", head: "Formula", cell: named },
  { sort: "source", head: "Source", cell: (t) => t.source ?? "–", less: true },
  { sort: "functional", head: "Functional", cell: (t) => t.run_type ?? t.functional ?? "–", less: true },
  { sort: "space_group", head: "Space group", cell: (t) => groupName(t.space_group_it_number), less: true },
  { sort: "sites", head: "Sites", cell: (t) => count(t.nsites), number: true, less: true },
  { sort: "frames", head: "Frames", cell: (t) => count(t.n_frames), number: true },
  { sort: "energy", head: "Energy", unit: "eV/atom", cell: (t) => digits(t.energy_per_atom, 4), number: true, title: "of the last frame" },
  { sort: "drop", head: "Drop", unit: "meV/atom", cell: (t) => digits(t.energy_drop === null ? null : 1000 * t.energy_drop, 1), number: true, less: true, title: "energy of the first frame above the last" },
  { sort: "force", head: "Max. force", unit: "eV/Å", cell: (t) => digits(t.max_force, 3), number: true, less: true, title: "of the last frame" },
];

const state = { include: new Set(), exclude: new Set(), sort: "", descending: false, page: 0 };
let dataset = { space_groups: [], trajectories: 0 };
let asking = new AbortController();
let timer = 0;

// --- elements

const buttons = new Map();

function drawElements() {
  for (const element of ELEMENTS) {
    const button = make(
      "button",
      { type: "button", className: "element", tabIndex: element.z === 1 ? 0 : -1, "data-symbol": element.symbol },
      make("span", { className: "symbol" }, element.symbol),
      make("span", { className: "number" }),
    );
    button.style.gridArea = `${element.row} / ${element.column}`;
    button.addEventListener("click", (event) => press(element.symbol, event.shiftKey));
    button.addEventListener("focus", () => roam(button));
    button.addEventListener("keydown", (event) => move(event, element));
    buttons.set(element.symbol, button);
    byId("elements").append(button);
  }
  for (const [text, row] of [["57–71", 6], ["89–103", 7]]) {
    const note = make("span", { className: "f-block", "aria-hidden": "true" }, text);
    note.style.gridArea = `${row} / 3`;
    byId("elements").append(note);
  }
}

function press(symbol, directly) {
  const { include, exclude } = state;
  if (include.has(symbol)) include.delete(symbol), exclude.add(symbol);
  else if (exclude.has(symbol)) exclude.delete(symbol);
  else (directly ? exclude : include).add(symbol);
  changed();
}

/** Keep one element in the order of the Tab key. */
function roam(button) {
  for (const other of buttons.values()) other.tabIndex = -1;
  button.tabIndex = 0;
}

function move(event, from) {
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  const step = steps[event.key];
  if (!step) return;
  event.preventDefault();
  const ahead = ELEMENTS.filter((e) => {
    const rows = (e.row - from.row) * step[0], columns = (e.column - from.column) * step[1];
    return rows + columns > 0 && (step[0] ? e.column === from.column : e.row === from.row);
  });
  const far = (e) => Math.abs(e.row - from.row) + Math.abs(e.column - from.column);
  const next = ahead.sort((a, b) => far(a) - far(b))[0];
  if (next) buttons.get(next.symbol).focus();
}

function showElements(counts) {
  const most = Math.log1p(Math.max(1, ...Object.values(counts)));
  for (const { symbol, name } of ELEMENTS) {
    const n = counts[symbol] ?? 0;
    const button = buttons.get(symbol);
    const how = state.include.has(symbol) ? "include" : state.exclude.has(symbol) ? "exclude" : "";
    button.dataset.how = how;
    button.classList.toggle("none", n === 0);
    button.style.setProperty("--share", `${Math.round((45 * Math.log1p(n)) / most)}%`);
    button.setAttribute("aria-pressed", { include: "true", exclude: "mixed", "": "false" }[how]);
    const said = { include: "required", exclude: "ruled out", "": "any" }[how];
    button.setAttribute("aria-label", `${name}, ${said}, ${n} trajectories`);
    button.querySelector(".number").textContent = n ? short(n) : "";
  }
  const parts = [...state.include].map((e) => `with ${e}`).concat([...state.exclude].map((e) => `without ${e}`));
  byId("chosen").textContent = parts.join(", ");
  byId("clear-elements").hidden = !parts.length;
}

const short = (n) => (n < 10_000 ? String(n) : n < 999_500 ? `${Math.round(n / 1000)}k` : `${(n / 1e6).toFixed(1)}M`);

// --- what is asked for

function parameters() {
  const wanted = new URLSearchParams();
  for (const how of ["include", "exclude"]) if (state[how].size) wanted.set(how, [...state[how]].join(","));
  if (byId("only").checked) wanted.set("only", "1");
  for (const name of FIELDS) if (byId(name).value.trim()) wanted.set(name, byId(name).value.trim());
  if (state.sort) wanted.set("sort", state.sort);
  if (state.descending) wanted.set("descending", "1");
  if (state.page) wanted.set("page", state.page);
  return wanted;
}

function restore() {
  const given = new URLSearchParams(location.search);
  for (const how of ["include", "exclude"]) state[how] = new Set((given.get(how) ?? "").split(",").filter((s) => buttons.has(s)));
  byId("only").checked = given.has("only");
  for (const name of FIELDS) byId(name).value = given.get(name) ?? "";
  showGroups();
  byId("space_group").value = given.get("space_group") ?? "";
  state.sort = given.get("sort") ?? "";
  state.descending = given.has("descending");
  state.page = Number.parseInt(given.get("page") ?? "0", 10) || 0;
}

/** Something else is wanted: begin at the first page. */
function changed() {
  state.page = 0;
  load();
}

async function load() {
  clearTimeout(timer);
  asking.abort();
  asking = new AbortController();
  const wanted = parameters();
  const search = wanted.size ? `?${wanted}` : "";
  history.replaceState(null, "", location.pathname + search);
  sessionStorage.setItem("home", search);
  byId("results").setAttribute("aria-busy", "true");
  try {
    show(await ask(`/api/trajectories${search}`, asking.signal));
    complain("");
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.parameter === "filter") complain(error.message);
    else byId("status").textContent = error.parameter ? `${error.parameter}: ${error.message}` : error.message;
  }
  byId("results").removeAttribute("aria-busy");
}

function complain(text) {
  byId("filter-error").textContent = text;
  byId("filter").toggleAttribute("aria-invalid", Boolean(text));
}

// --- the table

function drawHeads() {
  for (const column of COLUMNS) {
    const button = make("button", { type: "button", title: column.title ? `${column.head} ${column.title}` : "" }, column.head);
    if (column.unit) button.append(make("small", {}, column.unit));
    button.addEventListener("click", () => sortBy(column.sort));
    const head = make("th", { scope: "col", "data-sort": column.sort }, button);
    head.className = [column.number && "numeric", column.less && "less"].filter(Boolean).join(" ");
    byId("heads").append(head);
  }
}

/** Sort upwards, then downwards, then as stored. */
function sortBy(name) {
  if (state.sort !== name) [state.sort, state.descending] = [name, false];
  else if (!state.descending) state.descending = true;
  else [state.sort, state.descending] = ["", false];
  changed();
}

function named(t) {
  const link = make("a", { href: `/trajectory?id=${encodeURIComponent(t.trajectory_id)}` }, ...formula(t.chemical_formula_reduced ?? "?"));
  return [link, make("span", { className: "id" }, t.trajectory_id)];
}

function row(t) {
  const line = make("tr");
  for (const column of COLUMNS) {
    const cell = make("td", {}, ...[column.cell(t)].flat());
    cell.className = [column.number && "numeric", column.less && "less"].filter(Boolean).join(" ");
    line.append(cell);
  }
  line.addEventListener("click", (event) => {
    if (!event.target.closest("a") && !getSelection().toString()) line.querySelector("a").click();
  });
  return line;
}

function show(found) {
  const first = found.page * found.page_size;
  const last = first + found.rows.length;
  byId("rows").replaceChildren(...found.rows.map(row));
  byId("status").textContent = found.rows.length ? `${count(first + 1)}–${count(last)} of ${count(found.total)}` : `${count(found.total)} match`;
  byId("nothing").hidden = found.total > 0;
  byId("trajectories").hidden = found.total === 0;
  byId("previous").disabled = found.page === 0;
  byId("next").disabled = last >= found.total;
  for (const head of byId("heads").children) {
    const sorted = head.dataset.sort === state.sort;
    head.setAttribute("aria-sort", sorted ? (state.descending ? "descending" : "ascending") : "none");
  }
  showElements(found.elements);
}

function turn(by) {
  state.page += by;
  load();
  byId("results").scrollIntoView();
}

// --- choices

function showChoices() {
  for (const [id, choices] of [["source", dataset.sources], ["functional", dataset.functionals]]) {
    byId(id).append(...choices.map(([value, n]) => make("option", { value }, `${value} (${count(n)})`)));
  }
  for (const [name, [low, high]] of Object.entries(SYSTEMS)) {
    const n = dataset.space_groups.filter(([g]) => g >= low && g <= high).reduce((sum, [, m]) => sum + m, 0);
    if (n) byId("system").append(make("option", { value: name }, `${name} (${count(n)})`));
  }
  byId("min_sites").max = byId("max_sites").max = dataset.most_sites ?? "";
}

/** Offer the space groups of the crystal system that is chosen. */
function showGroups() {
  const [low, high] = SYSTEMS[byId("system").value] ?? [1, 230];
  const before = byId("space_group").value;
  const there = dataset.space_groups.filter(([g]) => g >= low && g <= high);
  const options = there.map(([g, n]) => make("option", { value: g }, `${groupName(g)}: ${count(n)}`));
  byId("space_group").replaceChildren(make("option", { value: "" }, "any"), ...options);
  byId("space_group").value = there.some(([g]) => String(g) === before) ? before : "";
}

async function start() {
  drawElements();
  drawHeads();
  byId("only").addEventListener("change", changed);
  byId("system").addEventListener("change", showGroups);
  for (const name of FIELDS) {
    if (byId(name).tagName === "SELECT") {
      byId(name).addEventListener("change", changed);
    } else {
      byId(name).addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(changed, WAIT);
      });
    }
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => {
    state.include.clear();
    state.exclude.clear();
    setTimeout(() => (showGroups(), changed()));
  });
  byId("clear-elements").addEventListener("click", () => {
    state.include.clear();
    state.exclude.clear();
    changed();
    buttons.get("H").focus();
  });
  byId("filter").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), changed();
  });
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  try {
    dataset = await ask("/api/dataset");
  } catch (error) {
    byId("status").textContent = error.message;
    return;
  }
  byId("dataset").textContent = dataset.name;
  byId("counts").textContent = `${count(dataset.trajectories)} trajectories, ${count(dataset.frames)} frames`;
  document.title = `${dataset.name.split("/").filter(Boolean).pop()} – trajmill explorer`;
  showChoices();
  restore();
  const narrow = matchMedia("(max-width: 640px)").matches;
  byId("fields").open = !narrow || FIELDS.some((name) => byId(name).value);
  await load();
}

start();
