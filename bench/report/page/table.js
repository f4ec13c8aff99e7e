// The table.

const ROWS = 100; // at a time
const LONG = 30; // characters of a text that may be cut
const FILTERS = ["layout", "method", "model", "mode", "ranks", "tokens", "status"];

const table = content.table;
const count = table.columns[0].length;
const noisy = new Set(table.noisy);
const state = { sort: "", down: false, text: "", only: {}, shown: ROWS };
const known = `report ${location.pathname}`;
try { // a page that reloads keeps what was chosen
  Object.assign(state, JSON.parse(sessionStorage.getItem(known) ?? "{}"));
} catch { /* storage may be forbidden */ }

const lowered = Array.from({ length: count }, (_, row) => (
  table.columns.map((column) => column[row] ?? "").join("\u0001").toLowerCase()));

function chosenRows() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const only = Object.entries(state.only).filter(([, value]) => value !== "")
    .map(([heading, value]) => [table.columns[table.headings.indexOf(heading)], value]);
  const found = [];
  for (let row = 0; row < count; row += 1) {
    if (only.every(([column, value]) => String(column[row] ?? "") === value)
      && words.every((word) => lowered[row].includes(word))) found.push(row);
  }
  const sorted = table.headings.indexOf(state.sort);
  if (sorted >= 0) {
    const column = table.columns[sorted];
    const way = state.down ? -1 : 1;
    const text = new Intl.Collator(undefined, { numeric: true });
    const isNone = (value) => value === null || value === "";
    found.sort((a, b) => {
      const [x, y] = [column[a], column[b]];
      if (isNone(x) || isNone(y)) return isNone(x) - isNone(y); // missing ones last, either way
      return way * (table.numeric[sorted] ? x - y : text.compare(x, y));
    });
  }
  return found;
}

function shownText(value, numeric) {
  if (value === null) return "";
  if (!numeric || Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

function fileText(name, row) { // empty where the row's file has no such column
  const { texts, at } = table.file[name] ?? { texts: [""], at: [] };
  return texts[at[row] ?? 0];
}

function keyOf(row) {
  return Object.entries(table.key)
    .map(([name, usual]) => [name, fileText(name, row), usual])
    .filter(([, text, usual]) => text !== "" && text !== usual)
    .map(([name, text]) => `${name}: ${text}`).join("\n");
}

function asCsv(rows) {
  const names = Object.keys(table.file);
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const lines = rows.map((row) => names.map((name) => fileText(name, row)));
  return [names, ...lines].map((line) => `${line.map(quoted).join(",")}\n`).join("");
}

function drawRow(row, status) {
  const key = keyOf(row);
  const cells = table.columns.map((column, at) => {
    let text = shownText(column[row], table.numeric[at]);
    if (table.headings[at] === "step (ms)" && text && noisy.has(row)) text += "~";
    const whole = text.length > LONG ? { title: `${text}\n\n${key}` } : {};
    const className = table.numeric[at] ? "number" : "";
    return element("td", { textContent: text, className, ...whole });
  });
  return element("tr", { className: status === "ok" ? "" : "failed", title: key }, ...cells);
}

function drawTable() {
  const found = chosenRows();
  const status = table.columns[table.headings.indexOf("status")];
  const shown = found.slice(0, state.shown);
  const lines = shown.map((row) => drawRow(row, status[row]));
  document.getElementById("noisy").hidden = !shown.some((row) => noisy.has(row));
  document.querySelector("tbody").replaceChildren(...lines);
  document.getElementById("count").textContent =
    `${found.length} of ${count} rows, ${lines.length} shown`;
  document.getElementById("more").hidden = found.length <= state.shown;
  document.querySelectorAll("th").forEach((head, at) => {
    const sorted = table.headings[at] === state.sort;
    head.setAttribute("aria-sort", sorted ? (state.down ? "descending" : "ascending") : "none");
    head.querySelector("button").textContent =
      table.headings[at] + (sorted ? (state.down ? " ▼" : " ▲") : "");
  });
  try { sessionStorage.setItem(known, JSON.stringify(state)); } catch { /* as above */ }
}

function makeTable() {
  document.querySelector("thead").append(element("tr", {}, ...table.headings.map((heading, at) => {
    const button = element("button", { type: "button", textContent: heading });
    button.addEventListener("click", () => {
      state.down = state.sort === heading && !state.down;
      state.sort = heading;
      drawTable();
    });
    return element("th", { className: table.numeric[at] ? "number" : "" }, button);
  })));
  const search = element("input", { type: "search", value: state.text, id: "search" });
  search.addEventListener("input", () => { state.text = search.value; drawTable(); });
  const form = document.getElementById("filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.append(element("label", {}, "words", search));
  for (const heading of FILTERS) {
    const at = table.headings.indexOf(heading);
    const order = new Intl.Collator(undefined, { numeric: true }).compare;
    const values = [...new Set(table.columns[at].map((value) => String(value ?? "")))].sort(order);
    const choice = element("select", { name: heading },
      element("option", { value: "", textContent: "all" }),
      ...values.filter(Boolean).slice(0, 200).map((value) => (
        element("option", { value, textContent: value }))));
    choice.value = state.only[heading] ?? "";
    choice.addEventListener("change", () => {
      state.only[heading] = choice.value;
      drawTable();
    });
    form.append(element("label", {}, heading, choice));
  }
  document.getElementById("csv").addEventListener("click", () => {
    const rows = new Blob([asCsv(chosenRows())], { type: "text/csv" });
    download("rows.csv", URL.createObjectURL(rows));
  });
  document.getElementById("more").addEventListener("click", () => {
    state.shown += ROWS;
    drawTable();
  });
  drawTable();
}
