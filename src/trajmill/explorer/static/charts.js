// Charts of numbers against the step, all with one cursor: that of the frame that is shown.

/* global uPlot */
import { digits, make } from "./common.js";

const CHARTS = [
  { key: "energy_per_atom", name: "Energy", unit: "eV/atom", places: 5 },
  { key: "max_force", name: "Maximum force", unit: "eV/Å", places: 4 },
  { key: "pressure", name: "Pressure", unit: "GPa", places: 3, missing: "unknown: no stress" },
  { key: "volume", name: "Volume", unit: "Å³", places: 3 },
];

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Give a range that is not empty, with some room. */
function roomy(_, low, high) {
  if (low === null || high === null) return [0, 1];
  const room = low === high ? Math.max(1e-4, Math.abs(low) * 1e-3) : (high - low) * 0.08;
  return [low - room, high + room];
}

/** Write numbers at an axis with as many digits as tell them apart. */
function labels(ticks, step) {
  const places = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9), step.toString().split(".")[1]?.length ?? 0);
  return ticks.map((tick) => digits(tick, Math.min(8, places)));
}

export class Charts {
  /** Draw the charts of a trajectory; `pick` is told the number of a frame that was clicked. */
  constructor(place, trajectory, pick) {
    this.frame = 0;
    this.frames = trajectory.frames;
    this.pick = pick;
    this.parts = CHARTS.map((chart) => this.draw(place, chart));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  draw(place, chart) {
    const values = this.frames[chart.key] ?? [];
    const known = values.filter((value) => value !== null);
    const readout = make("output", {});
    const body = make("div", { className: "plot" });
    const card = make(
      "figure",
      { className: "card chart", "data-chart": chart.key },
      make("figcaption", {}, make("span", {}, chart.name, make("small", {}, ` ${chart.unit}`)), readout),
      body,
    );
    place.append(card);
    if (!known.length) {
      body.append(make("p", { className: "missing" }, chart.missing ?? "unknown"));
      readout.textContent = "–";
      return { chart, values, readout };
    }
    body.setAttribute("role", "img");
    const [first, last] = [known[0], known[known.length - 1]].map((v) => digits(v, chart.places));
    body.setAttribute("aria-label", `${chart.name} against step, from ${first} to ${last} ${chart.unit}`);
    const plot = this.plot(body, values);
    new ResizeObserver(() => plot.setSize({ width: body.clientWidth, height: body.clientHeight })).observe(body);
    return { chart, values, readout, plot };
  }

  plot(body, values) {
    const axis = { stroke: () => color("--soft"), grid: { stroke: () => color("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    const options = {
      width: body.clientWidth,
      height: body.clientHeight,
      legend: { show: false },
      padding: [8, 10, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "frames" }, points: { size: 8 } },
      scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: roomy } },
      axes: [{ ...axis, size: 24, gap: 2, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] }, { ...axis, size: 66, gap: 4, space: 34, values: (_, ticks, __, ___, step) => labels(ticks, step) }],
      series: [{}, { stroke: () => color("--accent"), width: 1.5, points: { show: values.length < 60, size: 5 } }],
      hooks: { draw: [(plot) => this.mark(plot, values)] },
    };
    const plot = new uPlot(options, [this.frames.relaxation_step, values], body);
    plot.over.addEventListener("click", () => plot.cursor.idx !== null && this.pick(plot.cursor.idx));
    return plot;
  }

  /** Mark the frame that is shown, and where one calculation ends and the next begins. */
  mark(plot, values) {
    const { ctx, bbox } = plot;
    const { relaxation_step: steps, relaxation_number: stages } = this.frames;
    const line = (x, stroke, dash) => {
      ctx.strokeStyle = stroke;
      ctx.setLineDash(dash);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    };
    ctx.save();
    ctx.lineWidth = devicePixelRatio;
    for (let i = 1; i < steps.length; i++) {
      if (stages[i] !== stages[i - 1]) line(plot.valToPos((steps[i] + steps[i - 1]) / 2, "x", true), color("--soft"), [4, 4]);
    }
    const x = plot.valToPos(steps[this.frame], "x", true);
    line(x, color("--mark"), []);
    if (values[this.frame] !== null) {
      ctx.fillStyle = color("--mark");
      ctx.beginPath();
      ctx.arc(x, plot.valToPos(values[this.frame], "y", true), 4.5 * devicePixelRatio, 0, 2 * Math.PI);
      ctx.fill();
    }
    ctx.restore();
  }

  /** Show a frame. */
  show(frame) {
    this.frame = frame;
    for (const { chart, values, readout, plot } of this.parts) {
      if (plot) readout.textContent = digits(values[frame], chart.places);
      plot?.redraw(false);
    }
  }

  redraw() {
    for (const { plot } of this.parts) plot?.redraw(false, true);
  }
}
