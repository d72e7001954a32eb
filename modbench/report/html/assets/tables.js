"use strict";
const byId = (id) => document.getElementById(id);
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
function dataOf(id) {
  const element = byId(id);
  return element ? JSON.parse(element.textContent) : null;
}
document.documentElement.classList.add("js");

// Tables: sorting by keyboard, a filter, and files of what is shown.
const FORMULA = ["=", "+", "-", "@", "\t", "\r"];
function save(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
// Headings and shown rows; a cell is its text and, in columns of numbers, the number or null.
function contents(table) {
  const heads = [...table.tHead.rows[0].cells].map((th) => th.querySelector(".h, .sort").textContent);
  const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) =>
    [...row.cells].map((cell) => {
      const text = cell.textContent.trim();
      if (cell.dataset.sort === undefined) return { text };
      return { text, number: cell.dataset.sort === "" ? null : +cell.dataset.sort };
    }));
  return { heads, rows };
}
// Columns of a file: numbers at full precision, and the text as well where it says more.
function columns({ heads, rows }) {
  return heads.flatMap((head, index) => {
    const cells = rows.map((row) => row[index]);
    const blank = (cell) => (cell.text === "-" ? null : cell.text);
    if (!cells.some((cell) => cell.number !== undefined && cell.number !== null)) return [[head, cells.map(blank)]];
    const numbers = [head, cells.map((cell) => (cell.number === undefined ? blank(cell) : cell.number))];
    const more = cells.some((cell) => !/^[+-]?[\d.,]+( [kMGTPEZY])?$|^-$/.test(cell.text));
    return more ? [numbers, [head + ", as shown", cells.map(blank)]] : [numbers];
  });
}
function csvCell(value) {
  if (value === null) return "";
  if (typeof value === "number") return String(value);
  let text = value.replace(/\r/g, " ");
  if (FORMULA.includes(text[0])) text = "'" + text;
  return /[",\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
}
const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}" };
const latexCell = (text) => text.replace(/[&%$#_{}~^\\]/g, (c) => LATEX[c] || "\\" + c)
  .replace(/±/g, "$\\pm$").replace(/†/g, "$\\dagger$").replace(/‡/g, "$\\ddagger$");
const FILES = {
  CSV(table) {
    const of = columns(contents(table));
    const lines = [of.map(([head]) => head), ...of[0][1].map((_, row) => of.map(([, cells]) => cells[row]))];
    return ["csv", "text/csv", lines.map((line) => line.map(csvCell).join(",") + "\n").join("")];
  },
  LaTeX(table) {
    const { heads, rows } = contents(table);
    const align = [...table.tHead.rows[0].cells].map((th) => (th.classList.contains("n") ? "r" : "l")).join("");
    const line = (texts) => texts.map(latexCell).join(" & ") + " \\\\";
    const body = [line(heads), "\\midrule", ...rows.map((row) => line(row.map((cell) => cell.text)))];
    return ["tex", "text/x-tex",
      `\\begin{tabular}{${align}}\n\\toprule\n${body.join("\n")}\n\\bottomrule\n\\end{tabular}\n`];
  },
};

for (const block of document.querySelectorAll(".table")) {
  const table = block.querySelector("table");
  const caption = table.caption.textContent;
  for (const text of table.tHead.querySelectorAll(".h"))
    text.replaceWith(make("button", { type: "button", className: "sort" }, text.textContent));
  const bar = make("div", { className: "bar" });
  if (block.dataset.filter === "1") {
    const find = make("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows of: " + caption });
    const count = make("span", { role: "status" });
    const filter = () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      const all = table.tBodies[0].rows.length;
      count.textContent = words.length ? shown + " of " + all + " rows" : all + " rows";
    };
    find.addEventListener("input", filter);
    filter();
    bar.append(find, count);
  }
  for (const [name, form] of Object.entries(FILES)) {
    const button = make("button", { type: "button", "aria-label": "Save as " + name + ": " + caption }, name);
    button.addEventListener("click", () => {
      const [ending, kind, text] = form(table);
      const stem = caption.toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_|_$/g, "");
      save(stem + "." + ending, kind, text);
    });
    bar.append(button);
  }
  block.prepend(bar);
  // A shadow on the side to which the table goes on.
  const scroll = block.querySelector(".scroll");
  const edges = () => {
    block.classList.toggle("more-left", scroll.scrollLeft > 1);
    block.classList.toggle("more-right", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 1);
  };
  scroll.addEventListener("scroll", edges, { passive: true });
  new ResizeObserver(edges).observe(scroll);
}
