"use strict";
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

// what a mark stands for, beside the pointer; titles go, so that the browser does not say it twice
for (const title of document.querySelectorAll("figure g > title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
});

for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg");

  // a box for each line that can be hidden
  const names = [...new Set([...svg.querySelectorAll("[data-line]")].map((line) => line.dataset.line))];
  const boxes = document.createElement("div");
  boxes.className = "lines";
  for (const name of names.length > 1 ? names : []) {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      for (const line of svg.querySelectorAll("[data-line]"))
        if (line.dataset.line === name) line.style.display = box.checked ? "" : "none";
    });
    label.append(box, ` ${name}`);
    boxes.append(label);
  }
  figure.before(boxes);

  // Ctrl and the wheel look closer, dragging moves, a double click shows all again
  const whole = svg.getAttribute("viewBox").split(" ").map(Number);
  let view = [...whole];
  const show = () => {
    svg.setAttribute("viewBox", view.join(" "));
    figure.classList.toggle("zoomed", view[2] < whole[2]);
  };
  svg.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    const factor = Math.min(Math.exp(event.deltaY / 400), whole[2] / view[2]);
    const x = view[0] + (view[2] * (event.clientX - box.left)) / box.width;
    const y = view[1] + (view[3] * (event.clientY - box.top)) / box.height;
    view = [x - (x - view[0]) * factor, y - (y - view[1]) * factor, view[2] * factor, view[3] * factor];
    show();
  }, { passive: false });
  svg.addEventListener("pointermove", (event) => {
    if (!event.buttons || view[2] >= whole[2]) return;
    view[0] -= (event.movementX * view[2]) / svg.clientWidth;
    view[1] -= (event.movementY * view[3]) / svg.clientHeight;
    show();
  });
  svg.addEventListener("dblclick", () => {
    view = [...whole];
    show();
  });
}

// a table as a CSV file
for (const button of document.querySelectorAll("button[data-file]")) {
  button.addEventListener("click", () => {
    const rows = [...button.parentNode.querySelectorAll("tr")].map((row) =>
      [...row.cells].map((cell) => {
        const text = cell.className === "n" ? cell.textContent.replace(/,/g, "") : cell.textContent;
        return /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
      }).join(","));
    const file = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
    Object.assign(document.createElement("a"), { href: file, download: button.dataset.file }).click();
    setTimeout(() => URL.revokeObjectURL(file), 1000);
  });
}
