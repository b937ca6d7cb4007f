"""The one script of the page: tables sort by a click on a column's name or with the keyboard.

A name becomes a button, so that Tab, Enter and Space work, and ``aria-sort`` says what is sorted.
Numbers are read from the start of a cell, what has none goes last. Without the script the tables
stand as they are.
"""

SCRIPT = """
"use strict";
const read = cell => {
  const text = cell.textContent.trim(), value = parseFloat(text);
  return Number.isNaN(value) ? text : value;
};
const missing = value => value === "" || value === "–";
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
  : typeof a === "number" ? -1 : typeof b === "number" ? 1
  : a.localeCompare(b, undefined, {numeric: true});
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], names = [...table.tHead.rows[0].cells];
  names.forEach((name, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...name.childNodes);
    name.append(button);
    button.addEventListener("click", () => {
      const up = name.getAttribute("aria-sort") !== "ascending";
      names.forEach(other => other.removeAttribute("aria-sort"));
      name.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map(row => [read(row.cells[at]), row]);
      rows.sort(([a], [b]) => missing(a) || missing(b) ? missing(a) - missing(b)
        : up ? compare(a, b) : compare(b, a));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
"""

STYLE = """\
th button { all: unset; cursor: pointer; width: 100% }
th button:hover { color: var(--ink) }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
th[aria-sort=ascending] button::after { content: " ▲" }
th[aria-sort=descending] button::after { content: " ▼" }"""
