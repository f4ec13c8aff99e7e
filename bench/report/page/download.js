// Files that a reader takes away: figures as they are shown, and rows.

const TEXT_PX = 12;
const NOT_XML = /[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\u{10000}-\u{10FFFF}]/gu; // cannot be in an SVG

function download(name, url) {
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

function node(name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// Text in lines that fit into a width.
function linesOf(text, width) {
  const most = Math.max(20, Math.floor(width / (0.55 * TEXT_PX)));
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines[lines.length - 1]} ${word}`.trim();
    if (longer.length > most) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

// A card as one SVG: heading, legend, panels and source where the page has them.
async function figureOf(card) {
  const theme = ink();
  const frame = card.getBoundingClientRect();
  const root = node("svg", { "font-family": "system-ui, sans-serif" });
  let [width, height] = [frame.width, 0];
  const at = (part) => {
    const box = part.getBoundingClientRect();
    const [x, y] = [box.left - frame.left, box.top - frame.top];
    width = Math.max(width, x + box.width);
    height = Math.max(height, y + box.height);
    return { x, y, box };
  };
  const write = (part, text, size, more = {}) => {
    const { x, y, box } = at(part);
    const given = { x, y: y + 0.8 * box.height, "font-size": size, fill: theme.ink, ...more };
    root.append(node("text", given, text));
  };
  write(card.querySelector("h2"), card.querySelector("h2").textContent, 18);
  for (const button of card.querySelectorAll(".legend button[aria-pressed=true]")) {
    const sign = button.querySelector("svg").cloneNode(true);
    const place = at(button.querySelector("svg"));
    sign.setAttribute("x", place.x);
    sign.setAttribute("y", place.y);
    root.append(sign);
    write(button, button.textContent.slice(sign.textContent.length), 13, { x: place.x + 36 });
  }
  for (const panel of card.querySelectorAll(".panel")) {
    const heading = panel.querySelector("h3");
    const middle = at(heading).x + heading.getBoundingClientRect().width / 2;
    write(heading, heading.textContent, 14, { x: middle, "text-anchor": "middle" });
    const plot = panel.querySelector(".plot");
    const { x, y } = at(plot);
    const [wide, high] = [plot._fullLayout.width, plot._fullLayout.height];
    const options = { format: "svg", width: wide, height: high, imageDataOnly: true };
    const text = await Plotly.toImage(plot, options);
    const drawn = new DOMParser().parseFromString(
      text.replace(NOT_XML, "\uFFFD"), "image/svg+xml").documentElement;
    drawn.setAttribute("x", x);
    drawn.setAttribute("y", y);
    width = Math.max(width, x + wide);
    root.append(document.importNode(drawn, true));
  }
  const source = card.querySelector(".source");
  const { x, y } = at(source);
  linesOf(source.textContent, width - 2 * x).forEach((line, number) => {
    const below = y + 16 * (number + 1);
    root.append(node("text", { x, y: below, "font-size": TEXT_PX, fill: theme.soft }, line));
    height = Math.max(height, below);
  });
  const size = { width: Math.ceil(width), height: Math.ceil(height + 12) };
  root.prepend(node("rect", { ...size, fill: theme.paper }));
  for (const [key, value] of Object.entries(size)) root.setAttribute(key, value);
  root.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  const text = new XMLSerializer().serializeToString(root);
  return { text: text.replace(NOT_XML, "\uFFFD"), ...size };
}

async function saveFigure(card, format) {
  const figure = await figureOf(card);
  const svg = URL.createObjectURL(new Blob([figure.text], { type: "image/svg+xml" }));
  if (format === "SVG") {
    download(`${card.id}.svg`, svg);
    return;
  }
  const [image, sharp] = [new Image(), 2];
  await new Promise((done, failed) => {
    Object.assign(image, { onload: done, onerror: failed, src: svg });
  });
  const canvas = element("canvas", { width: sharp * figure.width, height: sharp * figure.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  download(`${card.id}.png`, canvas.toDataURL("image/png"));
}

function saveButtons(card, title) {
  return element("p", { className: "save" }, ...["PNG", "SVG"].map((format) => {
    const button = element("button", { type: "button", textContent: format });
    button.setAttribute("aria-label", `save ${title} as ${format}`);
    button.addEventListener("click", () => saveFigure(card, format));
    return button;
  }));
}
