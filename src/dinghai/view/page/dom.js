"use strict";
// Building the page: every text goes in as text, so nothing that a model wrote can become markup.

function el(tag, classes, ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function svgEl(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Non-finite numbers are stored as their names.
const isNumber = value => typeof value === "number";

function formatNumber(value) {
  if (!isNumber(value)) return value === null || value === undefined ? "–" : String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function formatShare(value) {
  if (!isNumber(value)) return formatNumber(value);
  const percent = value * 100;
  if (percent === 0 || percent === 100) return percent + "%";
  return (Math.abs(percent) < 0.1 ? Number(percent.toPrecision(2)) : Number(percent.toFixed(1))) + "%";
}

// Names of regions as words: no_signal -> no signal.
const words = name => name.replaceAll("_", " ");

// A tooltip inside `host`, which must be positioned.
function makeTip(host) {
  const tip = el("div", "tip");
  tip.hidden = true;
  host.append(tip);
  return {
    show(x, y, ...content) {
      tip.replaceChildren(...content);
      tip.hidden = false;
      const room = host.clientWidth - tip.offsetWidth - 4;
      const beside = x + 14 > room ? x - tip.offsetWidth - 14 : x + 14;
      tip.style.left = Math.max(4, Math.min(beside, room)) + "px";
      tip.style.top = Math.max(0, y) + "px";
    },
    hide() { tip.hidden = true; },
  };
}

function keyed(classes, text) {
  const swatch = el("i");
  return el("span", classes, swatch, text);
}
