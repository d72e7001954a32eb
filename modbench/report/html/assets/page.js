function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Tables: sorting by keyboard, a filter for those of more rows than this, and a file of the shown rows.
const FILTER_ABOVE = 8;
function csvCell(cell) {
  let text = cell.dataset.sort || cell.textContent;
  if (text === "-") return "";
  if (!cell.dataset.sort && /^[=+\-@]/.test(text)) text = "'" + text; // no formula in a spreadsheet
  return /[",]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
}
function save(table, name) {
  const rows = [...table.rows].filter((row) => !row.hidden);
  const text = rows.map((row) => [...row.cells].map(csvCell).join(",") + "\n").join("");
  const href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  make("a", { href, download: name.toLowerCase().replace(/[^a-z0-9]+/g, "_") + ".csv" }).click();
}
function filter(table, words, count) {
  const rows = [...table.tBodies[0].rows];
  const has = (row) => words.every((word) => row.textContent.toLowerCase().includes(word));
  for (const row of rows) row.hidden = !has(row);
  count.textContent = `${rows.filter(has).length} of ${rows.length} rows`;
}
for (const block of document.querySelectorAll(".table")) {
  const table = block.querySelector("table"), name = table.caption.textContent;
  for (const head of table.tHead.rows[0].cells) head.replaceChildren(make("button", {}, head.textContent));
  const csv = make("button", { ariaLabel: "Save as CSV: " + name }, "CSV");
  csv.addEventListener("click", () => save(table, name));
  const box = make("input", { type: "search", placeholder: "Filter rows", ariaLabel: "Filter: " + name });
  const count = make("span", { role: "status" });
  box.addEventListener("input", () => filter(table, box.value.toLowerCase().split(/\s+/), count));
  const isLong = table.tBodies[0].rows.length > FILTER_ABOVE;
  block.prepend(make("div", { className: "bar" }, ...(isLong ? [box, count] : []), csv));
}

// Routing: the tokens of a passage, shaded where the chosen layer processes them.
const passageData = document.getElementById("passage-data");
if (passageData) {
  const passages = JSON.parse(passageData.textContent);
  const [scheme, layer, said, shown] = document.querySelectorAll("[id^=viewer-]");
  scheme.append(...passages.map((passage, number) => new Option(passage.name, number)));
  const showLayer = () => {
    const { texts, layers } = passages[scheme.value];
    const chosen = layers[layer.value] || texts.map(() => 0), experts = Math.max(...chosen) + 1;
    const spans = texts.map((text) => make("span", {}, text.replace(/\n/g, "↵\n") || "<end>"));
    spans.forEach((span, at) => {
      const hue = 210 + (chosen[at] * 360) / experts;
      if (chosen[at] >= 0) span.style.background = `hsl(${hue} 70% 50% / 40%)`;
    });
    shown.replaceChildren(...spans);
    const count = chosen.filter((expert) => expert >= 0).length;
    const colors = experts > 1 ? `; a colour for the first of ${experts} experts` : "";
    said.textContent = `Layer ${layer.value} processes ${count} of ${texts.length} tokens${colors}.`;
    layer.setAttribute("aria-valuetext", said.textContent);
  };
  const showScheme = () => {
    const { layers } = passages[scheme.value];
    layer.max = layers.length - 1;
    layer.value = layers.findIndex((of) => of !== null); // the first that routes
    showLayer();
  };
  scheme.addEventListener("change", showScheme);
  layer.addEventListener("input", showLayer);
  showScheme();
}
