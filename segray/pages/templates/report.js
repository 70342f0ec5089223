"use strict";
// Without this script all is shown, in the order of the page.

function value(row, column) {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v === "" ? NaN : Number(cell.dataset.v);
}

// Texts by the reader's language, numbers by size; what is undefined stays last.
function compare(a, b, descending) {
  if (typeof a === "string") return (descending ? -1 : 1) * a.localeCompare(b, undefined, { numeric: true });
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return descending ? b - a : a - b;
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort") || (head.classList.contains("n") ? "ascending" : "descending");
      const descending = before === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(value(a, column), value(b, column), descending));
      table.tBodies[0].append(...rows);
    });
  });
}

for (const filter of document.querySelectorAll(".filter")) {
  const [kind, low, high] = filter.querySelectorAll("select, input");
  const frames = [...filter.closest("section").querySelectorAll("[data-score]")];
  const apply = () => {
    for (const frame of frames) {
      const score = parseFloat(frame.dataset.score);
      frame.hidden =
        (kind.value !== "" && !frame.dataset.classes.split(" ").includes(kind.value)) ||
        (low.value !== "" && !(score >= Number(low.value))) ||
        (high.value !== "" && !(score <= Number(high.value)));
    }
    const count = (name) => {
      const all = frames.filter((frame) => frame.localName === name);
      return `${all.filter((frame) => !frame.hidden).length} of ${all.length}`;
    };
    filter.querySelector("output").textContent = `${count("article")} pictured, ${count("tr")} listed`;
  };
  filter.addEventListener("input", apply);
  filter.hidden = false;
  apply();
}

// A click on a picture shows it large, with its legend; the arrow keys go to the next and the one before.
const pictures = [...document.querySelectorAll(".panels img, .picture")];
const large = document.createElement("dialog");
document.body.append(large);
let shown = null;

function enlarge(picture) {
  shown = picture;
  const caption = document.createElement("p");
  caption.textContent = picture.alt;
  const legend = picture.closest("section").querySelector(".key .legend");
  large.replaceChildren(picture.cloneNode(), caption, ...(legend ? [legend.cloneNode(true)] : []));
  if (!large.open) large.showModal();
}

for (const picture of pictures) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "open";
  button.setAttribute("aria-label", `Enlarge: ${picture.alt}`);
  picture.replaceWith(button);
  button.append(picture);
  button.addEventListener("click", () => enlarge(picture));
}

large.addEventListener("click", () => large.close());
large.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const seen = pictures.filter((picture) => picture.offsetParent !== null);
  const next = step && seen[seen.indexOf(shown) + step];
  if (next) enlarge(next);
});
