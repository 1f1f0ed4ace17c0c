// The map: how many tokens lie where, in the plane of ratio and advantage, with the rule's regions as places in it.
import { niceTicks } from "./charts.js";
import { areasOf, boundsOf, boundsVary, boxData, countText, drawRatioAxis, hatchData, logAxis, ratioRange, shortCount, SIDE } from "./clip_axis.js";
import { el, svgEl } from "./dom.js";
import { formatNumber, formatShare, isNumber, words } from "./format.js";

const LEVELS = 6;  // of density
const WEIGHT_SHOWN = 4;  // of w/|A|, where it goes much farther
const SHORTEST_NAME = 34;  // pixels that a region's name needs at least

// What the map says of each region, added up over its cells.
export function regionTotals(census, regions) {
  const totals = new Map(regions.map(one => [one.name, { name: one.name, meaning: one.meaning, tokens: 0, stopped: 0, removed: 0 }]));
  for (const [, , region, tokens, stopped, removed] of census.map.cells) {
    const total = regions[region] && totals.get(regions[region].name);
    if (!total) continue;
    total.tokens += tokens;
    total.stopped += stopped;
    total.removed += isNumber(removed) ? removed : 0;
  }
  if (totals.has("no_signal")) totals.get("no_signal").tokens += census.unscored || 0;  // which have no place on the map
  return totals;
}

// The parts of the picture from top to bottom.
function mapLayout(axis, census, rule, boundRows) {
  const hasWeights = Boolean(rule && rule.weights), panel = hasWeights ? 66 : 0, band = 60, half = axis.width > 700 ? 118 : 100;
  const good = { top: 6 + boundRows * 13, bottom: 6 + boundRows * 13 + panel };
  const upper = { top: good.bottom + (hasWeights ? 8 : 0) };
  upper.cells = upper.top + band;
  upper.bottom = upper.cells + half;
  const strip = { top: upper.bottom + 2, bottom: upper.bottom + 18 };
  const lower = { top: strip.bottom + 2 };
  lower.cells = lower.top + half;
  lower.bottom = lower.cells + band;
  const bad = { top: lower.bottom + (hasWeights ? 8 : 0), bottom: lower.bottom + (hasWeights ? 8 : 0) + panel };
  const edges = census.map.advantage_edges, top = edges[edges.length - 1];
  return {
    axis, good, upper, strip, lower, bad, hasWeights, most: top, ratioAxis: bad.bottom + 6, height: bad.bottom + 66,
    y: advantage => (advantage >= 0 ? upper.bottom - (advantage / top) * half : lower.top - (advantage / top) * half),
  };
}

export function drawMap(card, data, width) {
  const { census, rule, regions } = data;
  const axis = logAxis(census.map.log_ratio_edges, width);
  const bounds = placeLabels(axis, boundsOf(rule));
  const plan = mapLayout(axis, census, rule, bounds.rows);
  const svg = svgEl("svg", { viewBox: `0 0 ${width} ${plan.height}`, height: plan.height, class: "map" });
  const areas = shownAreas(census, rule, regions).filter(area => area.from < axis.high && area.to > axis.low);
  const boxes = cellBoxes(census, regions, plan, areas);
  drawGround(svg, plan, areas);
  drawCells(svg, boxes);
  drawAreaNames(svg, plan, areas, census, regions);
  drawBounds(svg, plan, bounds);
  drawAdvantageAxis(svg, plan);
  if (plan.hasWeights) {
    drawWeight(svg, plan, plan.good, rule, 1);
    drawWeight(svg, plan, plan.bad, rule, -1);
  }
  drawRatioAxis(svg, axis, plan.ratioAxis);
  drawDensityLegend(svg, plan, boxes);
  explore(card, svg, plan, census, regions);
  return svg;
}

// The rule's areas. Where its weight is not known as a curve, its deeds tell which are stopped.
function shownAreas(census, rule, regions) {
  const totals = regionTotals(census, regions);
  const allStopped = name => totals.has(name) && totals.get(name).tokens > 0 && totals.get(name).stopped === totals.get(name).tokens;
  return [...areasOf(rule, 1), ...areasOf(rule, -1)].map(area => ({ ...area, stopped: rule.weights ? area.stopped : allStopped(area.region) }));
}

// The bounds' labels stand left of a lower bound and right of an upper one, each in the first row with room for it.
function placeLabels(axis, bounds) {
  const shown = bounds.filter(one => one.logRatio > axis.low && one.logRatio < axis.high);
  const taken = [];
  for (const one of shown) {
    const x = axis.x(one.logRatio), size = one.label.length * 5.9;
    const toLeft = (one.logRatio < 0 && x - size > axis.left - 40) || x + size > axis.width;
    const [from, to] = toLeft ? [x - size, x] : [x, x + size];
    one.anchor = toLeft ? "end" : "start";
    one.row = 0;
    while (taken.some(other => other.row === one.row && other.from < to + 8 && other.to > from - 8)) one.row += 1;
    taken.push({ row: one.row, from, to });
  }
  return { shown, rows: shown.length ? Math.max(...shown.map(one => one.row)) + 1 : 0 };
}

function drawBounds(svg, plan, bounds) {
  for (const one of bounds.shown) {
    const x = plan.axis.x(one.logRatio);
    const upper = one.advantages.includes(1), lower = one.advantages.includes(-1);
    const spans = [];
    if (upper) spans.push([plan.good.top, plan.upper.bottom]);
    if (lower) spans.push([plan.lower.top, plan.bad.bottom]);
    for (const [y1, y2] of spans) svg.append(svgEl("line", { class: "bound", x1: x, x2: x, y1, y2 }));
    const y = 10 + one.row * 13;
    svg.append(svgEl("line", { class: "bound faint", x1: x, x2: x, y1: y + 3, y2: upper ? plan.good.top : plan.lower.top }));
    svg.append(svgEl("text", { class: "label", x: x + (one.anchor === "end" ? 3 : -3), y, "text-anchor": one.anchor }, one.label));
  }
}

// Each area in a breath of its region's colour, hatched where the rule's weight is 0.
function drawGround(svg, plan, areas) {
  const { axis, upper, lower, strip } = plan;
  for (const area of areas) {
    const [top, bottom] = area.sign > 0 ? [upper.top, upper.bottom] : [lower.top, lower.bottom];
    const left = axis.x(area.from), right = axis.x(area.to);
    svg.append(svgEl("path", { class: `ground r-${area.region}`, d: boxData(left, top, right, bottom) }));
    if (area.stopped) svg.append(svgEl("path", { class: `hatch r-${area.region}`, d: hatchData(left, top, right, bottom) }));
  }
  for (const [top, bottom] of [[upper.top, upper.bottom], [lower.top, lower.bottom], [strip.top, strip.bottom]]) {
    svg.append(svgEl("path", { class: "border", d: boxData(axis.left, top, axis.right, bottom) }));
  }
}

// The rectangles of each cell. A bin that a bound cuts is shared out along it; what else lies in one bin is stacked.
function cellBoxes(census, regions, plan, areas) {
  const { log_ratio_edges: xs, advantage_edges: ys, cells } = census.map;
  const middle = (ys.length - 2) / 2, byBin = new Map();
  for (const cell of cells) {
    const key = cell[0] * ys.length + cell[1];
    byBin.set(key, [...(byBin.get(key) || []), cell]);
  }
  const boxes = [];
  for (const inBin of byBin.values()) {
    const loose = [];
    for (const cell of inBin) {
      const [ix, iy, region] = cell, name = regions[region] ? regions[region].name : "unknown";
      const box = { cell, name, tokens: cell[3], stopped: cell[4], rects: [] };
      boxes.push(box);
      const left = plan.axis.x(xs[ix]), right = plan.axis.x(xs[ix + 1]);
      if (name === "no_signal") { box.rects.push([left, plan.strip.top + 1, right, plan.strip.bottom - 1]); continue; }
      const inArea = areas.filter(area => area.region === name && area.from < xs[ix + 1] && area.to > xs[ix] &&
        (iy === middle || area.sign > 0 === iy > middle));
      if (!inArea.length) { loose.push([box, left, right]); continue; }
      for (const area of inArea) {
        const span = [Math.max(left, plan.axis.x(area.from)), Math.min(right, plan.axis.x(area.to))];
        for (const [top, bottom, sign] of rowSpans(ys, iy, middle, plan)) if (sign === area.sign) box.rects.push([span[0], top, span[1], bottom]);
      }
    }
    stack(loose, inBin.length > loose.length, ys, middle, plan);
  }
  return boxes;
}

// Where the row of an advantage bin lies: the middle one has a half on each side of the strip for A = 0.
function rowSpans(ys, iy, middle, plan) {
  if (iy === middle) return [[plan.y(ys[iy + 1]), plan.upper.bottom, 1], [plan.lower.top, plan.y(ys[iy]), -1]];
  return [[plan.y(ys[iy + 1]), plan.y(ys[iy]), iy > middle ? 1 : -1]];
}

// Cells whose place no bound tells (a dropped token may lie anywhere) share the height of their bin.
function stack(loose, besideOthers, ys, middle, plan) {
  const parts = loose.length + (besideOthers ? 1 : 0);
  loose.forEach(([box, left, right], place) => {
    for (const [top, bottom] of rowSpans(ys, box.cell[1], middle, plan)) {
      const share = (bottom - top) / parts;
      box.rects.push([left, top + place * share, right, top + (place + 1) * share]);
    }
  });
}

const densityLevel = (tokens, most) => Math.min(LEVELS - 1, Math.floor((Math.log(tokens) / Math.log(most + 1)) * LEVELS));

// One path for each region, density and fate: some twenty elements instead of thousands.
function drawCells(svg, boxes) {
  const most = Math.max(1, ...boxes.map(box => box.tokens));
  const paths = new Map(), hatched = [];
  for (const box of boxes) {
    const classes = `cell r-${box.name} n${densityLevel(box.tokens, most)}`;
    for (const rect of box.rects) {
      paths.set(classes, (paths.get(classes) || "") + boxData(...rect));
      if (box.stopped * 2 >= box.tokens) hatched.push(hatchData(...rect));
    }
  }
  for (const [classes, d] of paths) svg.append(svgEl("path", { class: classes, d }));
  if (hatched.length) svg.append(svgEl("path", { class: "hatch over", d: hatched.join("") }));
}

// Name and shares of each area, above the cells where A > 0 and below them where A < 0.
function drawAreaNames(svg, plan, areas, census, regions) {
  const totals = regionTotals(census, regions), gradient = census.gradient, named = new Set();
  for (const area of areas) {
    const left = plan.axis.x(area.from), right = plan.axis.x(area.to), room = right - left - 8;
    const top = area.sign > 0 ? plan.upper.top + 13 : plan.lower.cells + 14;
    const total = totals.get(area.region);
    const lines = [words(area.region)];
    // The numbers of a region that lies on both sides are those of both.
    if (named.has(area.region)) lines.push(...["counted above", "as above"].filter(text => text.length * 5.3 < room).slice(0, 1));
    else if (total) lines.push(...areaLines(total, census.tokens, gradient, room));
    named.add(area.region);
    if (room < SHORTEST_NAME && room < lines[0].length * 5.5) continue;
    const outer = area.from === -Infinity || area.to === Infinity;
    const [x, anchor] = !outer || room < 90 ? [(left + right) / 2, "middle"] : area.from === -Infinity ? [left + 7, "start"] : [right - 7, "end"];
    lines.forEach((line, row) => {
      svg.append(svgEl("text", { class: row ? "label small" : "label areaname", x, y: top + row * 12, "text-anchor": anchor }, line));
    });
  }
}

// As much as there is room for.
function areaLines(total, tokens, gradient, room) {
  const share = formatShare(tokens ? total.tokens / tokens : 0), fits = text => text.length * 5.3 < room;
  if (!total.tokens) return ["no token"];
  const stopped = total.stopped === total.tokens ? "all stopped" : total.stopped === 0 ? "none stopped" : `${formatShare(total.stopped / total.tokens)} stopped`;
  const removed = gradient > 0 ? formatShare(total.removed / gradient) : "0%";
  return [
    [`${share} of the tokens`, `${share} tokens`, share],
    [stopped, stopped.replace(" stopped", " st.")].slice(0, 1),
    total.removed > 0 ? [`${removed} of the gradient removed`, `−${removed} of gradient`, `−${removed} grad.`] : [],
  ].map(variants => variants.find(fits)).filter(Boolean);
}

function drawAdvantageAxis(svg, plan) {
  const text = (y, said) => svg.append(svgEl("text", { x: SIDE.left - 7, y: y + 4, "text-anchor": "end" }, said));
  for (const tick of niceTicks(0, plan.most, 2)) if (tick > 0) { text(plan.y(tick), `+${tick}`); text(plan.y(-tick), `−${tick}`); }
  text((plan.strip.top + plan.strip.bottom) / 2, "A = 0");
  text(plan.upper.top + 9, "A > 0");
  text(plan.lower.bottom - 9, "A < 0");
}

// The rule's weight for one sign of the advantage, over the same ratios; dotted the weight r that no rule would give.
function drawWeight(svg, plan, panel, rule, sign) {
  const { axis } = plan, places = rule.weights.log_ratio, weights = sign > 0 ? rule.weights.good : rule.weights.bad;
  const shown = places.map((place, index) => [place, weights[index]]).filter(([place, weight]) => isNumber(weight) && place >= axis.low && place <= axis.high);
  const low = Math.min(0, ...shown.map(point => point[1])), high = Math.max(1, ...shown.map(point => point[1]));
  // Weights that grow without bound must not flatten the rest: they leave the panel.
  const bottom = low < -1.5 * WEIGHT_SHOWN ? -WEIGHT_SHOWN : low, top = high > 1.5 * WEIGHT_SHOWN ? WEIGHT_SHOWN : high;
  const floor = panel.bottom - 4, ceiling = panel.top + 16;
  const y = weight => floor - ((weight - bottom) / (top - bottom)) * (floor - ceiling);
  const line = points => within(points, bottom, top).map(part =>
    part.map(([place, weight], index) => `${index ? "L" : "M"}${axis.x(place).toFixed(1)} ${y(weight).toFixed(1)}`).join("")).join("");
  const labelled = [];
  for (const tick of [0, bottom, top, 1]) {
    if (labelled.some(other => Math.abs(y(other) - y(tick)) < 10)) continue;
    labelled.push(tick);
    svg.append(svgEl("line", { class: "rule", x1: axis.left, x2: axis.right, y1: y(tick), y2: y(tick) }));
    svg.append(svgEl("text", { x: SIDE.left - 7, y: y(tick) + 4, "text-anchor": "end" }, formatNumber(Number(tick.toPrecision(2))).replace("-", "−")));
  }
  svg.append(svgEl("path", { class: "curve unclipped", d: line(shown.map(([place]) => [place, Math.exp(place)])) }));
  svg.append(svgEl("path", { class: `curve ${sign > 0 ? "k0" : "k5"}`, d: line(shown) }));
  const name = axis.width > 480 ? `gradient weight ÷ A where A ${sign > 0 ? ">" : "<"} 0; dotted: without the rule` : "weight ÷ A";
  svg.append(svgEl("text", { class: "label small", x: axis.left + 6, y: panel.top + 9 }, name));
}

// The pieces of a line that lie within two levels, cut where it crosses them.
function within(points, low, high) {
  const parts = [];
  let last = null;
  for (const point of points) {
    const held = [point[0], Math.min(high, Math.max(low, point[1]))], inside = held[1] === point[1];
    const wasInside = last !== null && last[1] >= low && last[1] <= high;
    if (inside && !wasInside) parts.push(last ? [crossing(last, point, low, high)] : []);
    if (inside) parts[parts.length - 1].push(point);
    else if (wasInside) parts[parts.length - 1].push(crossing(point, last, low, high));
    last = point;
  }
  return parts;
}

// Where the line from a point outside to one inside enters.
function crossing(outside, inside, low, high) {
  const level = outside[1] > high ? high : low;
  const part = (level - inside[1]) / (outside[1] - inside[1]);
  return [inside[0] + part * (outside[0] - inside[0]), level];
}

function drawDensityLegend(svg, plan, boxes) {
  const most = Math.max(1, ...boxes.map(box => box.tokens)), y = plan.ratioAxis + 44;
  const first = Array.from({ length: LEVELS }, (_, level) => Math.max(1, Math.ceil((most + 1) ** (level / LEVELS) - 1e-9)));
  const steps = first.map((from, level) => [from, level]).filter(([from], place) => place === 0 || from !== first[place - 1]);
  let x = plan.axis.left;
  const roomy = axis => axis.width > 480, title = roomy(plan.axis) ? "tokens a cell, from" : "tokens";
  svg.append(svgEl("text", { x, y: y + 9 }, title));
  x += title.length * 5.6 + 6;
  for (const [from, level] of roomy(plan.axis) ? steps : steps.filter((_, place) => place % 2 === 0)) {
    svg.append(svgEl("rect", { class: `cell ink n${level}`, x, y, width: 11, height: 11 }));
    const label = shortCount(from);
    svg.append(svgEl("text", { x: x + 15, y: y + 9 }, label));
    x += 22 + label.length * 6.5;
  }
}

// Exact numbers of a bin, by pointer and by arrow keys.
function explore(card, svg, plan, census, regions) {
  const { log_ratio_edges: xs, advantage_edges: ys, cells } = census.map, middle = (ys.length - 2) / 2;
  const byBin = new Map();
  for (const cell of cells) {
    const strip = regions[cell[2]] && regions[cell[2]].name === "no_signal", key = `${cell[0]},${strip ? "zero" : cell[1]}`;
    byBin.set(key, [...(byBin.get(key) || []), cell]);
  }
  const outline = svgEl("rect", { class: "chosencell", visibility: "hidden" });
  svg.append(outline);

  // iy, or "zero" for the strip; null outside of the plane
  const rowAt = y => {
    if (y >= plan.strip.top - 1 && y <= plan.strip.bottom + 1) return "zero";
    const advantage = y < plan.strip.top ? ((plan.upper.bottom - y) / (plan.upper.bottom - plan.upper.cells)) * plan.most
      : ((plan.lower.top - y) / (plan.lower.cells - plan.lower.top)) * plan.most;
    if (Math.abs(advantage) > plan.most) return null;
    const found = ys.findIndex((edge, index) => index < ys.length - 1 && advantage >= edge && advantage <= ys[index + 1]);
    return found < 0 ? null : found;
  };
  const spanOf = row => {
    if (row === "zero") return [plan.strip.top, plan.strip.bottom];
    const spans = rowSpans(ys, row, middle, plan);
    return [spans[0][0], spans[spans.length - 1][1]];
  };
  const show = (ix, row) => {
    const found = byBin.get(`${ix},${row}`);
    if (!found) { hide(); return; }
    const left = plan.axis.x(xs[ix]), right = plan.axis.x(xs[ix + 1]), [top, bottom] = spanOf(row);
    for (const [name, value] of Object.entries({ x: left - 1, y: top - 1, width: right - left + 2, height: bottom - top + 2, visibility: "visible" })) {
      outline.setAttribute(name, value);
    }
    const corner = new DOMPoint(right, bottom).matrixTransform(svg.getScreenCTM()), box = card.node.getBoundingClientRect();
    card.tip.show(corner.x - box.left, corner.y - box.top + 6, ...cellTip(plan, regions, census, ix, row, found));
    card.place = { ix, row };
  };
  const hide = () => { outline.setAttribute("visibility", "hidden"); card.tip.hide(); };
  const point = event => {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()), row = rowAt(y);
    if (row === null || x < plan.axis.left || x > plan.axis.right) hide(); else show(plan.axis.bin(x), row);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  // A finger that is lifted leaves the figure; what it touched stays to be read.
  svg.addEventListener("pointerleave", event => { if (event.pointerType !== "touch") hide(); });

  const rows = Array.from({ length: ys.length - 1 }, (_, index) => index);
  rows.splice(middle + 1, 0, "zero");  // the strip, above the bin that holds the smallest advantages
  const start = () => {
    const here = card.place && byBin.has(`${card.place.ix},${card.place.row}`) ? card.place : densest(byBin);
    show(here.ix, here.row);
  };
  // The next bin with tokens in that direction.
  const move = (right, up) => {
    let { ix } = card.place, place = rows.indexOf(card.place.row);
    do {
      ix += right;
      place += up;
      if (ix < 0 || ix > xs.length - 2 || place < 0 || place >= rows.length) return;
    } while (!byBin.has(`${ix},${rows[place]}`));
    show(ix, rows[place]);
  };
  svg.setAttribute("tabindex", "0");
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) start(); });
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    if (event.key === "Escape") hide();
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (card.place) move(...step); else start();
  });
}

function densest(byBin) {
  const tokensOf = ([, cells]) => cells.reduce((sum, cell) => sum + cell[3], 0);
  const [[key]] = [...byBin].sort((one, other) => tokensOf(other) - tokensOf(one));
  const [ix, row] = key.split(",");
  return { ix: Number(ix), row: row === "zero" ? row : Number(row) };
}

function cellTip(plan, regions, census, ix, row, cells) {
  const { gradient } = census, ys = census.map.advantage_edges, text = value => formatNumber(Number(value.toPrecision(3))).replace("-", "−");
  const last = ys.length - 2;
  const advantage = row === "zero" ? "A = 0" : row === 0 ? `A below ${text(ys[1])}` : row === last ? `A above ${text(ys[last])}` : `A ${text(ys[row])} to ${text(ys[row + 1])}`;
  const lines = cells.flatMap(([, , region, tokens, stopped, removed]) => {
    const name = regions[region] ? regions[region].name : "unknown";
    return [
      el("tr", "", el("td", `r-${name}`, el("i"), words(name)), el("td", "", `${countText(tokens)} tokens`)),
      stopped ? el("tr", "", el("td", "", "of them stopped"), el("td", "", countText(stopped))) : null,
      isNumber(removed) && removed > 0 ? el("tr", "", el("td", "", "gradient removed"), el("td", "", `${formatShare(gradient > 0 ? removed / gradient : 0)} of all`)) : null,
    ].filter(Boolean);
  });
  return [el("b", "", `${ratioRange(plan.axis, ix)}, ${advantage}`), el("table", "", ...lines)];
}

// The regions as a table, which is the picture's legend and says its numbers exactly.
export function regionTable(census, regions) {
  const totals = [...regionTotals(census, regions).values()].filter(one => one.tokens > 0);
  const gradient = census.gradient;
  const cell = text => el("td", "number", text);
  const rows = totals.map(one => el("tr", "",
    el("th", `r-${one.name}`, el("i", one.stopped * 2 >= one.tokens && one.name !== "no_signal" ? "hatched" : ""), words(one.name)),
    cell(countText(one.tokens)), cell(formatShare(one.tokens / census.tokens)), cell(one.name === "no_signal" ? "–" : formatShare(one.stopped / one.tokens)),
    cell(gradient > 0 ? formatShare(one.removed / gradient) : "–"), el("td", "meaning", one.meaning)));
  rows.forEach(row => { row.firstChild.scope = "row"; });
  const head = ["region", "tokens", "share", "of them stopped", "gradient removed", "which tokens"].map((name, place) => {
    const th = el("th", place === 0 || place === 5 ? "" : "number", name);
    th.scope = "col";
    return th;
  });
  const table = el("table", "regions", el("thead", "", el("tr", "", ...head)), el("tbody", "", ...rows));
  return table;
}

// What the map shows, in sentences.
export function mapSentences(census, rule, regions) {
  const hatched = stoppedRegions(census, regions).size > 0 || shownAreas(census, rule, regions).some(area => area.stopped);
  const said = hatched ? ["Hatched: stopped, the gradient weight is exactly 0."] : [];
  const removed = [...regionTotals(census, regions).values()].filter(one => one.removed > 0).sort((a, b) => b.removed - a.removed);
  if (census.gradient > 0 && removed.length) {
    const share = one => formatShare(one.removed / census.gradient);
    const parts = removed.slice(0, 3).map(one => `${share(one)} in ${words(one.name)}`);
    said.push(`${formatShare(census.removed / census.gradient)} of the gradient was removed: ${parts.join(", ")}.`);
  } else if (census.gradient > 0) said.push("No gradient was removed.");
  const vary = boundsVary(rule);
  if (vary) said.push(vary);
  if (!rule) said.push("The run holds no rule.json, as runs of older versions, so the bounds are not drawn: the colours say in which region the rule found each token.");
  else if (!vary && !rule.boundaries.length) said.push(rule.weights ? `${rule.title} has no bounds.` : `No bounds are drawn: ${rule.note || "the rule's are not known"}.`);
  if (census.not_finite) said.push(`${countText(census.not_finite)} tokens have a ratio, an advantage or a weight that is not finite, and no place on the map.`);
  return said;
}

// Names of the regions in which the rule stopped the tokens.
export function stoppedRegions(census, regions) {
  const totals = [...regionTotals(census, regions).values()];
  return new Set(totals.filter(one => one.tokens > 0 && one.stopped * 2 >= one.tokens && one.name !== "no_signal").map(one => one.name));
}
