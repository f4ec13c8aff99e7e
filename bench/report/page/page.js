"use strict";
// Everything from files is put in place as text: textContent, never innerHTML. What plotly reads as
// markup was escaped where the charts were made.
const content = JSON.parse(document.getElementById("content").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const NARROW = 420; // px of a panel
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
    return element("div", { className: "panel", style: `width: ${width}px` },
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
  card.querySelector("h2").textContent = [card.heading, chart.origin].filter(Boolean).join(", ");
  card.querySelector(".source").textContent = [chart.source, chart.note].filter(Boolean).join(". ");
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
  card.heading = given.title;
  if (given.charts.length > 1) {
    const choice = element("select", {}, ...given.charts.map((chart, at) => (
      element("option", { value: at, textContent: chart.of }))));
    choice.addEventListener("change", () => drawChart(card, given.charts[choice.value]));
    card.append(element("label", {}, "rows of", choice));
  }
  card.append(element("div", { className: "legend" }), element("div", { className: "panels" }),
    element("p", { className: "source" }), saveButtons(card, given.title));
  card.start = () => drawChart(card, given.charts[0]);
  return card;
}
