// Saves a figure as an .svg file that stands alone: its colours are written into it, and title and key lie inside.
import { el, svgEl } from "./dom.js";

const SAVED_STYLES = {
  "fill-opacity": "1", "stroke-width": "1px", "stroke-opacity": "1", "stroke-dasharray": "none", "stroke-linejoin": "miter",
  "stroke-linecap": "butt", "font-size": "", "font-weight": "400", "text-anchor": "start", "opacity": "1", "paint-order": "normal",
};
const FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif", MONO = "'DejaVu Sans Mono', Menlo, Consolas, monospace";
const PADDING = 12, LINE = 15;

// A button that saves a figure. figureOf() -> { svg, title, note, keys: [{ classes, text }] }, as it is when it is pressed;
// note and keys may be missing, and `remark` is a note that only the file has.
export function saveButton(figureOf) {
  const button = el("button", "save", "SVG");
  button.type = "button";
  button.title = "Save this figure as an SVG file";
  button.setAttribute("aria-label", button.title);
  button.addEventListener("click", () => { const figure = figureOf(); if (figure.svg) saveFigure(figure); });
  return button;
}

function saveFigure(figure) {
  const content = standalone(figure);
  const address = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(content)], { type: "image/svg+xml" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = `${slug(document.title.split(" · ")[0])}-${slug(figure.title)}.svg`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// The figure with title, note and key above it, in light colours whatever the page's theme is.
function standalone(figure) {
  const svg = figure.svg;
  return inLight(() => {
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const full = width + 2 * PADDING;
    const out = svgEl("svg", { xmlns: "http://www.w3.org/2000/svg", "font-family": FONT });
    const ground = svgEl("rect", { width: full, fill: "#ffffff" });
    out.append(svgEl("title", {}, figure.title), ground);
    let y = PADDING + 8;
    const write = (text, attributes) => out.append(svgEl("text", { x: PADDING, y, "font-size": 12, fill: "#1d2329", ...attributes }, text));
    for (const line of wrapped(figure.title, width, "600 13px")) { write(line, { "font-size": 13, "font-weight": 600 }); y += LINE + 1; }
    for (const line of wrapped([figure.note, figure.remark].filter(Boolean).join(". "), width, "11px")) { write(line, { "font-size": 11, fill: "#5c6670" }); y += LINE; }
    y = writeKeys(out, svg, figure.keys || [], width, y + 2);
    const body = copied(svg);
    body.setAttribute("transform", `translate(${PADDING} ${y - 6})`);
    out.append(body);
    const total = Math.ceil(y + height + PADDING - 6);
    ground.setAttribute("height", total);
    for (const [name, value] of [["width", full], ["height", total], ["viewBox", `0 0 ${full} ${total}`]]) out.setAttribute(name, value);
    return out;
  });
}

function writeKeys(out, svg, keys, width, top) {
  let x = PADDING, y = top;
  for (const key of keys) {
    const long = 22 + measured(key.text, "11px");
    if (x > PADDING && x + long > width + PADDING) { x = PADDING; y += LINE; }
    // A path of the figure's own classes has the colour and the dashes that the key stands for.
    const probe = svgEl("path", { class: `keysample ${key.classes}`, d: `M${x.toFixed(1)} ${y - 4}h14` });
    svg.append(probe);
    const sample = copied(probe);
    probe.remove();
    out.append(sample, svgEl("text", { x: (x + 19).toFixed(1), y, "font-size": 11, fill: "#1d2329" }, key.text));
    x += long + 12;
  }
  return keys.length ? y + LINE : top;
}

// A copy in which every style is an attribute. What is not visible is left out; a copied svg becomes a group.
function copied(node) {
  const style = getComputedStyle(node);
  if (style.display === "none" || style.visibility === "hidden" || node.classList.contains("unsaved")) return svgEl("g");
  const inner = node.localName === "svg";
  const out = inner ? svgEl("g") : svgEl(node.localName);
  const skipped = new Set(["class", "style", "tabindex", "role", "visibility"]);
  if (!inner) {
    for (const { name, value } of node.attributes) {
      if (!skipped.has(name) && !/^(aria|data)-|^on/.test(name)) out.setAttribute(name, value);
    }
    if (node.localName !== "title" && node.localName !== "g" && node.localName !== "defs") setPaint(out, style);
    for (const [name, usual] of Object.entries(SAVED_STYLES)) {
      const value = style.getPropertyValue(name);
      const forText = name.startsWith("font") || name === "text-anchor" || name === "paint-order";
      if (forText && node.localName !== "text" && node.localName !== "tspan") continue;
      if (node.localName === "g" && name !== "opacity") continue;
      if (value && value !== usual && !out.hasAttribute(name)) out.setAttribute(name, value);
    }
    if (/mono/i.test(style.fontFamily) && (node.localName === "text" || node.localName === "tspan")) out.setAttribute("font-family", MONO);
  }
  for (const child of node.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) out.append(child.data);
    else if (child.nodeType === Node.ELEMENT_NODE) out.append(copied(child));
  }
  return out;
}

function setPaint(out, style) {
  for (const name of out.localName === "line" ? ["stroke"] : ["fill", "stroke"]) {
    const value = style.getPropertyValue(name);
    if (value === "none" || value.startsWith("url(")) { out.setAttribute(name, value); continue; }
    const [colour, opacity] = plainColour(value);
    out.setAttribute(name, opacity === 0 ? "none" : colour);
    if (opacity > 0 && opacity < 1) {
      out.setAttribute(`${name}-opacity`, String(Number((opacity * Number(style.getPropertyValue(`${name}-opacity`) || 1)).toFixed(3))));
    }
  }
}

const paintProbe = { context: null };

// Any CSS colour as #rrggbb and its opacity: programs that read SVG know no color-mix().
function plainColour(value) {
  if (!paintProbe.context) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 1;
    paintProbe.context = canvas.getContext("2d", { willReadFrequently: true });
  }
  const context = paintProbe.context;
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = value;
  context.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = context.getImageData(0, 0, 1, 1).data;
  return ["#" + [red, green, blue].map(part => part.toString(16).padStart(2, "0")).join(""), Number((alpha / 255).toFixed(3))];
}

// Runs `task` while the page has its light colours; it is not painted in between.
function inLight(task) {
  const root = document.documentElement, before = root.dataset.theme;
  root.dataset.theme = "light";
  try {
    return task();
  } finally {
    if (before === undefined) delete root.dataset.theme; else root.dataset.theme = before;
  }
}

function measured(text, font) {
  plainColour("#000");
  paintProbe.context.font = `${font} Helvetica, Arial, sans-serif`;
  return paintProbe.context.measureText(text).width;
}

function wrapped(text, width, font) {
  const lines = [];
  let line = "";
  for (const word of text.split(" ").filter(Boolean)) {
    if (line && measured(`${line} ${word}`, font) > width) { lines.push(line); line = word; }
    else line = line ? `${line} ${word}` : word;
  }
  return line ? [...lines, line] : lines;
}

function slug(text) {
  return text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "figure";
}
