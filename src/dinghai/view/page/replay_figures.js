// How much gradient the rule removes by where its bound is: a curve for each bound, with what was and what papers took.
import { niceTicks } from "./charts.js";
import { el, svgEl } from "./dom.js";
import { crosshair } from "./figure.js";
import { axisShare, formatNumber, formatShare } from "./format.js";

const EDGE = { left: 46, right: 14, top: 30, bottom: 34 }, TALL = 190;

// data: { name, values, answers (one for each value), at, own (places in the grid), marks: [{ name, place }], chosen(place) }
export function drawBoundCurve(card, data, width) {
  const { values, answers, at, own } = data, shares = answers.map(one => one.removed || 0);
  const most = Math.max(...shares) * 1.08 || 0.01, bottom = TALL - EDGE.bottom;
  const svg = svgEl("svg", { viewBox: `0 0 ${width} ${TALL}`, height: TALL, class: "boundcurve" });
  const place = logPlaces(values), x = index => EDGE.left + place[index] * (width - EDGE.left - EDGE.right);
  const y = value => bottom - (value / most) * (bottom - EDGE.top);
  for (const tick of niceTicks(0, most, 4)) {
    svg.append(svgEl("line", { class: "rule", x1: EDGE.left, x2: width - EDGE.right, y1: y(tick), y2: y(tick) }));
    svg.append(svgEl("text", { x: EDGE.left - 7, y: y(tick) + 4, "text-anchor": "end" }, axisShare(formatShare(tick))));
  }
  for (const index of spreadOut(values.map((_, index) => index), x, index => formatNumber(values[index]).length * 6.6 + 12)) {
    svg.append(svgEl("line", { class: "base", x1: x(index), x2: x(index), y1: bottom, y2: bottom + 4 }));
    svg.append(svgEl("text", { x: x(index), y: bottom + 16, "text-anchor": "middle" }, formatNumber(values[index])));
  }
  svg.append(svgEl("text", { x: (EDGE.left + width - EDGE.right) / 2, y: TALL - 4, "text-anchor": "middle" }, data.name));
  drawMarks(svg, data, x, bottom, width);
  const path = shares.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`).join("");
  svg.append(svgEl("path", { class: "curve k0", d: path }));
  svg.append(svgEl("rect", { class: "rp-own", x: x(own) - 4, y: y(shares[own]) - 4, width: 8, height: 8 }));
  svg.append(svgEl("circle", { class: "dot k0", cx: x(at), cy: y(shares[at]), r: 6 }));
  const plot = { svg, width, top: EDGE.top - 4, bottom, x };
  crosshair(card, plot, values.map((_, index) => index), index => [
    el("b", "", `${data.name} ${formatNumber(values[index])}`),
    el("table", "", ...[["gradient removed", formatShare(answers[index].removed)], ["tokens stopped", formatShare(answers[index].stopped)],
      ["cosine", formatNumber(answers[index].cosine)]].map(([name, value]) => el("tr", "", el("td", "", name), el("td", "", value)))),
    el("div", "wide", "Click to take it."),
  ]);
  svg.addEventListener("click", event => {
    const box = svg.getBoundingClientRect(), where = ((event.clientX - box.left) / box.width) * width;
    data.chosen(values.reduce((best, _, index) => (Math.abs(x(index) - where) < Math.abs(x(best) - where) ? index : best), 0));
  });
  return svg;
}

// Equal factors are equally far apart; 0 stands one step before the smallest.
function logPlaces(values) {
  const logs = values.map(value => (value > 0 ? Math.log(value) : null)), known = logs.filter(one => one !== null);
  const low = Math.min(...known), high = Math.max(...known), step = (high - low) / Math.max(1, known.length - 1) || 1;
  const first = known.length < logs.length ? low - step : low;
  return logs.map(one => ((one === null ? first : one) - first) / (high - first || 1));
}

// Those of the places that leave each other room, with the ends.
function spreadOut(places, x, room) {
  const kept = [];
  for (const one of [places[0], places[places.length - 1], ...places]) {
    if (kept.every(other => other !== one && Math.abs(x(other) - x(one)) > (room(other) + room(one)) / 2)) kept.push(one);
  }
  return kept;
}

// Dashed lines with names above, in two rows; a name that finds no room is left to the buttons.
function drawMarks(svg, { marks }, x, bottom, width) {
  const ends = [-Infinity, -Infinity];
  for (const { name, place } of [...marks].sort((a, b) => x(a.place) - x(b.place))) {
    const at = x(place), half = name.length * 3 + 3;
    svg.append(svgEl("line", { class: "bound faint", x1: at, x2: at, y1: EDGE.top - 4, y2: bottom }));
    const row = ends.findIndex(end => at - half > end);
    if (row < 0 || at + half > width + 8) continue;
    ends[row] = at + half;
    svg.append(svgEl("text", { class: "label small", x: at, y: row ? 11 : 22, "text-anchor": "middle" }, name));
  }
}
