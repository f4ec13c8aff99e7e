"use strict";
// Everything from files is put in place as text: textContent, never innerHTML. What plotly reads as
// markup was escaped where the charts were made.
const content = JSON.parse(document.getElementById("content").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const PAGE = 100; // rows at a time
const NARROW = 420; // px of a panel
const FILTERS = ["method", "model", "mode", "ranks", "tokens", "status"];
const SVG = "http://www.w3.org/2000/svg";
const DASHES = { solid: "", dash: "6 3", dashdot: "6 3 2 3", dot: "2 3", longdashdot: "9 3 2 3" };

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function ink() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return { ink: read("--ink"), paper: read("--card"), soft: read("--soft"), line: read("--line") };
}

// Colours that have a part in the page's theme are called by that name.
function themed(value, theme) {
  if (typeof value === "string") return theme[value] ?? value;
  if (Array.isArray(value)) return value;
  const found = {};
  for (const [key, of] of Object.entries(value)) {
    const holds = of !== null && typeof of === "object";
    found[key] = key === "color" || holds ? themed(of, theme) : of;
  }
  return found;
}

// Charts.

function layoutOf(panel, theme, width) {
  const axis = (given) => ({
    gridcolor: theme.line, linecolor: theme.soft, zeroline: false, automargin: true,
    showline: true, ticks: "outside", tickcolor: theme.soft, ...given,
    title: { ...given.title, standoff: 8 },
  });
  const narrow = width < NARROW;
  const annotations = panel.layout.annotations.map((note) => (
    { ...note, font: { size: narrow ? 9 : 11, color: theme.ink } }));
  return {
    width,
    height: (panel.layout.xaxis.tickangle ? 380 : 320) * panel.height,
    margin: { l: 50, r: 12, t: 8, b: 45 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: theme.ink, size: narrow ? 10 : 12, family: "system-ui, sans-serif" },
    showlegend: false, barmode: "overlay", hovermode: "closest", annotations,
    hoverlabel: { font: { color: "#ffffff" } },
    xaxis: { ...axis(panel.layout.xaxis), showgrid: false }, yaxis: axis(panel.layout.yaxis),
  };
}

function drawPanels(card, chart, hidden) {
  const theme = ink();
  const places = card.querySelector(".panels");
  const room = places.clientWidth;
  const count = chart.panels.length;
  const most = Math.max(1, Math.min(chart.columns || count, Math.floor(room / 300)));
  const side = Math.ceil(count / Math.ceil(count / most)); // as many on each line
  places.replaceChildren(...chart.panels.map((panel, at) => {
    const line = chart.panels.slice(at - (at % side), at - (at % side) + side);
    const total = line.reduce((sum, of) => sum + of.width, 0) * (side / line.length);
    const place = element("div", { className: "plot" });
    const bars = Object.keys(panel.layout.xaxis.ticktext ?? {}).length;
    const least = panel.layout.xaxis.tickangle ? 70 + 13 * bars : 0;
    const share = Math.floor((room - 8 * (side - 1)) * panel.width / total) - 1;
    const width = Math.max(Math.min(share, 700 * Math.max(1, panel.width)), least);
    const small = width < 1.5 * NARROW ? { textfont: { size: 9 } } : {};
    const traces = panel.data.map((trace) => (
      { ...small, ...themed(trace, theme), visible: !hidden.has(trace.name) }));
    Plotly.newPlot(place, traces, layoutOf(panel, theme, width), {
      displaylogo: false, displayModeBar: false, scrollZoom: false,
    });
    return element("div", { className: "panel" },
      element("h3", { textContent: panel.title }), place);
  }));
}

function swatch(entry, theme) {
  const svg = document.createElementNS(SVG, "svg");
  const add = (name, attributes, text = "") => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    svg.append(made);
  };
  const color = theme[entry.fill ?? entry.color] ?? entry.fill ?? entry.color;
  svg.setAttribute("width", 30);
  svg.setAttribute("height", 14);
  svg.setAttribute("aria-hidden", "true");
  if (entry.fill !== undefined) {
    const edge = entry.edge === "dotted" ? { stroke: theme.ink, "stroke-dasharray": "2 2" } : {};
    add("rect", { x: 1, y: 1, width: 28, height: 12, fill: color, ...edge });
    add("text", { x: 15, y: 11, fill: "#ffffff", "font-size": 11, "text-anchor": "middle" },
      entry.hatch);
  } else {
    if (entry.dash !== "none") {
      add("line", { x1: 0, x2: 30, y1: 7, y2: 7, stroke: color, "stroke-width": 2,
        "stroke-dasharray": DASHES[entry.dash] ?? "" });
    }
    add("text", { x: 15, y: 12, fill: color, "font-size": 13, "text-anchor": "middle" },
      entry.glyph);
  }
  return svg;
}

function escaped(text) { // as the names of traces are
  const letters = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
  return text.replace(/[&<>]/g, (letter) => letters[letter]);
}

function drawChart(card, chart) {
  const hidden = new Set();
  card.querySelector(".source").textContent = chart.source;
  card.querySelector(".legend").replaceChildren(...chart.legend.map((entry) => {
    const button = element("button", { type: "button", title: "show or hide" },
      swatch(entry, ink()), entry.label);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const name = escaped(entry.label);
      const shown = hidden.delete(name);
      if (!shown) hidden.add(name);
      button.setAttribute("aria-pressed", String(shown));
      drawPanels(card, chart, hidden);
    });
    return button;
  }));
  card.redraw = () => drawPanels(card, chart, hidden);
  card.recolor = () => drawChart(card, chart);
  card.redraw();
}

function makeCard(given) {
  const card = element("section", { id: given.name }, element("h2", { textContent: given.title }));
  for (const note of given.notes) {
    card.append(element("p", { className: "note", textContent: note }));
  }
  if (given.charts.length === 0) return card;
  if (given.charts.length > 1) {
    const choice = element("select", {}, ...given.charts.map((chart, at) => (
      element("option", { value: at, textContent: chart.of }))));
    choice.addEventListener("change", () => drawChart(card, given.charts[choice.value]));
    card.append(element("label", {}, "rows of", choice));
  }
  card.append(element("div", { className: "legend" }), element("div", { className: "panels" }),
    element("p", { className: "source" }));
  card.start = () => drawChart(card, given.charts[0]);
  return card;
}

// The table.

const table = content.table;
const count = table.columns[0].length;
const state = { sort: -1, down: false, text: "", only: {}, shown: PAGE };
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
  if (state.sort >= 0) {
    const column = table.columns[state.sort];
    const way = state.down ? -1 : 1;
    const text = new Intl.Collator(undefined, { numeric: true });
    const isNone = (value) => value === null || value === "";
    found.sort((a, b) => {
      const [x, y] = [column[a], column[b]];
      if (isNone(x) || isNone(y)) return isNone(x) - isNone(y); // missing ones last, either way
      return way * (table.numeric[state.sort] ? x - y : text.compare(x, y));
    });
  }
  return found;
}

function shownText(value, numeric) {
  if (value === null) return "";
  if (!numeric || Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(4)));
}

function drawTable() {
  const found = chosenRows();
  const status = table.columns[table.headings.indexOf("status")];
  const lines = found.slice(0, state.shown).map((row) => element("tr",
    { className: status[row] === "ok" ? "" : "failed" },
    ...table.columns.map((column, at) => {
      const text = shownText(column[row], table.numeric[at]);
      return element("td",
        { textContent: text, title: text, className: table.numeric[at] ? "number" : "" });
    })));
  document.querySelector("tbody").replaceChildren(...lines);
  document.getElementById("count").textContent =
    `${found.length} of ${count} rows, ${lines.length} shown`;
  document.getElementById("more").hidden = found.length <= state.shown;
  document.querySelectorAll("th").forEach((head, at) => {
    const sorted = at === state.sort;
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
      state.down = state.sort === at && !state.down;
      state.sort = at;
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
  document.getElementById("more").addEventListener("click", () => {
    state.shown += PAGE;
    drawTable();
  });
  drawTable();
}

// The page.

document.getElementById("heading").textContent = content.heading;
document.getElementById("notes").append(
  ...content.notes.map((note) => element("li", { textContent: note })));
const cards = content.cards.map(makeCard);
document.getElementById("cards").append(...cards);
document.getElementById("contents").append(...[...cards, document.getElementById("rows")].map(
  (card) => element("a", { href: `#${card.id}`, textContent: card.querySelector("h2").textContent }),
));
makeTable();
cards.forEach((card) => card.start?.());
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) { // a phone's height changes as its bars come and go
    width = innerWidth;
    cards.forEach((card) => card.redraw?.());
  }
});
dark.addEventListener("change", () => cards.forEach((card) => card.recolor?.()));
if (content.reload_s > 0) setTimeout(() => location.reload(), 1000 * content.reload_s);
document.documentElement.dataset.ready = "true";
