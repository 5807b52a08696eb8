// What both pages use.

/** Make an element with properties, attributes (names with a dash, `role`, ...) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Ask the server; an error has what it said, and as `parameter` what was wrong. */
export async function ask(path, signal) {
  let answer;
  try {
    answer = await fetch(path, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is trajmill explore still running?");
  }
  if (!answer.headers.get("content-type")?.startsWith("application/json")) throw new Error(await answer.text());
  const found = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(found.error), { parameter: found.parameter });
  return found;
}

/** Write a formula with its numbers below the line. */
export function formula(text) {
  return text.split(/(\d+)/).map((part) => (/^\d+$/.test(part) ? make("sub", {}, part) : part));
}

/** Write a number with so many digits after the point; a dash for what is unknown. */
export function digits(value, n) {
  return value === null || value === undefined ? "–" : value.toFixed(n).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");
}

export const count = (n) => n.toLocaleString("en");

/** Write of how many: 1 frame, 2 frames. */
export const several = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;
