"use strict";

// --- Tooltips of the charts ---

const tooltip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.(".chart [aria-roledescription][aria-label][d]");
  tooltip.hidden = !mark;
  if (mark) {
    tooltip.textContent = mark.getAttribute("aria-label");
    tooltip.style.left = Math.min(event.clientX + 12, innerWidth - tooltip.offsetWidth - 8) + "px";
    tooltip.style.top = Math.max(event.clientY - tooltip.offsetHeight - 8, 4) + "px";
  }
});

// --- The accounts that were not patched ---

// Decode the list, which is stored by column in blocks.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const rows = [];
  for (const block of await new Response(plain).json()) {
    for (let i = 0; i < block[0].length; i++) rows.push(block.map((column) => column[i]));
  }
  return rows;
}

// Numbers are sorted by value. Missing values come last in both directions.
const natural = new Intl.Collator("en", { numeric: true }).compare;
const compare = (a, b) => (typeof a === "string" ? natural(a, b) : a - b);
function sort(rows, column, descending) {
  rows.sort((row, other) => {
    const [a, b] = [row[column], other[column]];
    if (a === null || b === null) return (a === null) - (b === null);
    return descending ? compare(b, a) : compare(a, b);
  });
}

const formatters = { seconds: (n) => n.toFixed(2), settled: (n) => new Date(n * 1000).toISOString().slice(0, 19).replace("T", " ") };

function table(rows, packed) {
  const section = document.getElementById("listing");
  const [tools, pages, count] = [".tools", ".pages", ".count"].map((name) => section.querySelector(name));
  const [search, state, error] = tools.elements;
  const [previous, next] = pages.querySelectorAll("button");
  const heads = [...section.querySelectorAll(".list th")];
  const names = heads.map((head) => head.textContent);
  const body = section.querySelector(".list tbody");
  // On phones each account is a card of ten lines.
  const size = matchMedia("(max-width: 44rem)").matches ? 20 : Number(packed.dataset.shown);
  const [STATE, ERROR] = [names.indexOf("state"), names.indexOf("error")];
  const texts = new Map(rows.map((row) => [row, row.join("\n").toLowerCase()]));
  let [found, page, sortedBy, descending] = [rows, 0, 0, false];

  function show() {
    const lines = found.slice(page * size, (page + 1) * size).map((row) => {
      const line = document.createElement("tr");
      row.forEach((cell, column) => {
        const td = line.insertCell();
        td.dataset.name = names[column];
        td.className = heads[column].className;
        if (cell !== null) td.textContent = (formatters[names[column]] ?? String)(cell);
      });
      return line;
    });
    body.replaceChildren(...lines);
    const last = Math.max(0, Math.ceil(found.length / size) - 1);
    pages.hidden = last === 0;
    previous.disabled = page === 0;
    next.disabled = page === last;
    pages.querySelector("span").textContent = `page ${(page + 1).toLocaleString("en")} of ${(last + 1).toLocaleString("en")}`;
    count.textContent = found.length === rows.length ? "" : `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} match`;
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = rows.filter(
      (row) =>
        (!state.value || row[STATE] === state.value) &&
        (!error.value || row[ERROR] === error.value) &&
        words.every((word) => texts.get(row).includes(word)),
    );
    page = 0;
    show();
  }

  for (const [select, column] of [[state, STATE], [error, ERROR]]) {
    const values = [...new Set(rows.map((row) => row[column]))].filter(Boolean).sort();
    select.append(...values.slice(0, 200).map((text) => new Option(text, text)));
    select.addEventListener("change", filter);
  }
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      descending = sortedBy === column && !descending;
      sortedBy = column;
      sort(rows, sortedBy, descending);
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      filter();
    });
  });
  heads[0].setAttribute("aria-sort", "ascending");
  search.addEventListener("input", filter);
  tools.addEventListener("submit", (event) => event.preventDefault());
  previous.addEventListener("click", () => { page -= 1; show(); });
  next.addEventListener("click", () => { page += 1; show(); });
  tools.hidden = false;
  show();
}

const packed = document.getElementById("packed");
if (packed) {
  unpack(packed.textContent).then(
    (rows) => table(rows, packed),
    () => { document.querySelector("#listing .count").textContent = "This browser is too old to show the whole list. These are the first accounts."; },
  );
}
