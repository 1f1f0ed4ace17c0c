// The curves of value and weight over the ratio, with the token's place on them, which can be dragged.
import { el, svgEl } from "./dom.js";
import { tokenAt, importanceWeighted, clippedArgument } from "./explain_math.js";
import { boundariesOf, fairFigure, shortFigure } from "./explain_token.js";

const PLOT = { left: 44, right: 20, top: 24, bottom: 26, height: 300 };
const FARTHEST = 12.5; // the axis goes no farther by itself; a ratio that is set beyond takes it along

// The ratios shown: from 0 to beyond the rule's bounds, or about 1 for the ratio of a sequence.
export function domainOf(view) {
  const isSequence = view.rule.ratio === "sequence";
  const [low, high] = isSequence ? [0.9, 1.1] : [0.02, view.rule.by_probability ? Math.min(30, 1 / view.pOld) : 30];
  const bounds = [1, -1].flatMap(advantage => boundariesOf(
    ratio => ({ region: view.math.region(tokenAt(ratio, advantage, view.pOld), view.q) }), low, high));
  if (isSequence) {
    const farthest = Math.max(0, ...bounds.map(bound => Math.abs(bound - 1)));
    const half = Math.max(3 * (farthest || 4e-4), 1.15 * Math.abs(view.reach - 1), 1.15 * Math.abs(view.ratio - 1));
    return [Math.max(0, 1 - half), 1 + half];
  }
  const farthest = Math.max(0, ...bounds.filter(bound => bound <= FARTHEST));
  return [0, Math.max(farthest ? Math.min(Math.max(2, 1.25 * farthest), FARTHEST) : 3, 1.12 * view.reach, 1.12 * view.ratio)];
}

// Round numbers between two, each with its text, in as many digits as the step has.
function ticksBetween(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find(factor => factor * power >= rough * 0.999) * power;
  const places = Math.max(0, 1 - Math.floor(Math.log10(step)));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    const tick = Number((i * step).toPrecision(10));
    ticks.push([tick, String(Number(tick.toFixed(places))).replace("-", "−")]);
  }
  return ticks;
}

// The stretches between the rule's bounds, each with points (r, what of it); the bounds belong to neither side.
function stretches(view, [low, high]) {
  const from = Math.min(Math.max(low, high * 2e-3), high);
  const edges = [from, ...boundariesOf(view.at, from, high), high];
  return edges.slice(1).map((end, i) => {
    const start = edges[i], inset = (end - start) * 1e-9, points = [];
    for (let k = 0; k <= 90; k++) {
      const ratio = start + inset + ((end - start - 2 * inset) * k) / 90;
      points.push([ratio, view.at(ratio)]);
    }
    return { start: i === 0 ? low : start, end, region: view.at((start + end) / 2).region, points };
  });
}

// A range that shows the curve: with what must be seen, and without what shoots off at the axis's ends.
function rangeOf(values, always) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  let low = Math.min(...always), high = Math.max(...always);
  if (sorted.length) {
    low = Math.min(low, sorted[Math.floor(sorted.length * 0.02)]);
    high = Math.max(high, sorted[Math.ceil(sorted.length * 0.98) - 1]);
  }
  if (low === high) return [-1, 1];
  const span = high - low;
  return [low - (low < 0 ? 0.1 : 0.04) * span, high + (high > 0 ? 0.1 : 0.04) * span];
}

const KINDS = {
  value: { symbol: "J", of: found => found.value },
  weight: { symbol: "w", of: found => found.weight },
};

// One of the two curves. The frame stays, what is in it is drawn anew; so the handle keeps its focus.
export function mountCurve(kind, words, onRatio) {
  const { symbol, of } = KINDS[kind];
  const svg = svgEl("svg", { class: "curve-plot", height: PLOT.height });
  const layer = svgEl("g"), handle = makeHandle();
  svg.append(layer, handle);
  const number = el("output", "now");
  const note = el("p", "note"), keys = el("div", "keys");
  const node = el("section", `card plot ${kind}`, el("h3", "", words.say(`${kind}.title`), number), note, svg, keys);
  let shown = null, plot = null;

  const draw = () => {
    const width = Math.floor(node.clientWidth - 28);
    if (!shown || width < 80) return;
    plot = drawCurve(layer, kind, shown, words, width);
    svg.setAttribute("viewBox", `0 0 ${width} ${PLOT.height}`);
    const r = Math.min(Math.max(shown.ratio, plot.domain[0]), plot.domain[1]);
    handle.setAttribute("transform", `translate(${plot.x(r).toFixed(1)} ${plot.y(of(shown.found)).toFixed(1)})`);
    handle.setAttribute("class", `handle r-${shown.found.region}`);
    describeHandle(handle, plot, shown, words.say("curve.point", {
      what: symbol, v: shortFigure(of(shown.found)), region: words.region(shown.found.region) }));
    number.textContent = `${symbol} = ${fairFigure(of(shown.found), shown.rule)}`;
    note.textContent = noteOf(kind, shown, words);
    keys.replaceChildren(...keysOf(kind, shown, plot, words));
  };
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(node);
  followPointer(svg, handle, () => plot, onRatio);
  followKeys(handle, () => plot, () => shown, onRatio);
  return { node, show(view) { shown = view; draw(); } };
}

function noteOf(kind, view, words) {
  if (kind === "value") return words.say("value.note");
  return words.say(view.rule.holds_constant ? "weight.note" : "weight.slope");
}

// Whether the slope of the value is what the weight is made of.
const hasSlope = view => !view.rule.holds_constant && view.advantage !== 0 && !view.isImpossible;

// Whether the value may be compared with r·A: not where it is made of log π.
const isOfRatio = rule => !Object.values(rule.value).some(text => text.includes("π_new"));

function keysOf(kind, view, plot, words) {
  const entries = [["rule", words.say("curve.rule")]];
  if (kind === "weight" || isOfRatio(view.rule)) entries.push(["without", words.say("curve.without")]);
  if (kind === "value" && hasSlope(view)) entries.push([`slope r-${view.found.region}`, words.say("curve.slope")]);
  if (kind === "value" && view.clip) entries.push(["clipped", words.say("curve.clipped")]);
  if (kind === "weight" && plot.removes) entries.push(["removed", words.say("curve.removed")]);
  if (plot.isCut) entries.push(["impossible", words.say("curve.impossible")]);
  return entries.map(([name, text]) => el("span", `key-${name}`, el("i"), text));
}

function drawCurve(layer, kind, view, words, width) {
  const { of } = KINDS[kind], domain = domainOf(view);
  const limit = view.rule.ratio === "token" && 1 / view.pOld < domain[1] ? 1 / view.pOld : null;
  // A rule that asks for the probability has nothing to say of one above 1.
  const asks = view.rule.by_probability || (kind === "value" && !isOfRatio(view.rule));
  const parts = stretches(view, limit !== null && asks ? [domain[0], limit] : domain);
  const tokenFor = ratio => tokenAt(ratio, view.advantage, view.pOld);
  const shows = { without: kind === "weight" || isOfRatio(view.rule), clipped: kind === "value" && view.clip };
  const values = parts.flatMap(part => part.points.map(([, found]) => of(found)));
  // Near r = 1, where sequence ratios lie, the value's change would be lost beside zero.
  const always = [...(kind === "value" && view.rule.ratio === "sequence" ? [] : [0]), of(view.found), ...(shows.without ? [view.found.unclipped] : []), ...(shows.clipped ? [view.clip.clipped] : [])];
  if (shows.without) values.push(...[0.25, 0.5, 0.75].map(share => (domain[0] + share * (domain[1] - domain[0])) * view.advantage));
  const range = rangeOf(values, always);
  const x = r => PLOT.left + ((r - domain[0]) / (domain[1] - domain[0])) * (width - PLOT.left - PLOT.right);
  const y = v => heightOf(v, range);
  const bottom = PLOT.height - PLOT.bottom, clip = `url(#clip-${kind})`;
  const nodes = [definitions(kind, width, bottom)];

  for (const part of parts) nodes.push(...regionBand(part, x, bottom, part.region === view.found.region, words));
  nodes.push(...axes(domain, range, x, y, width, bottom));
  const line = (points, classes) => svgEl("path", { class: classes, d: pathOf(points, x, y), "clip-path": clip });
  const ends = [domain[0], domain[1]];
  let removes = false;
  if (kind === "weight") {
    for (const part of parts) {
      const within = part.points.filter(([r]) => limit === null || r <= limit);
      const kept = within.map(([r, found]) => [r, keptOf(found)]), full = within.map(([r, found]) => [r, found.unclipped]);
      if (!part.points.some(([, found]) => Math.abs(found.weight) < Math.abs(found.unclipped) * (1 - 1e-9))) continue;
      removes = true;
      const area = line([...kept, ...full.reverse()], "removed");
      area.setAttribute("fill", `url(#hatch-removed-${kind})`);
      nodes.push(area);
    }
  }
  if (shows.without) nodes.push(line(ends.map(r => [r, importanceWeighted(tokenFor(r))]), "without"));
  if (shows.clipped) {
    const corners = [domain[0], view.clip.lower, view.clip.upper, domain[1]].filter(r => r >= domain[0] && r <= domain[1]);
    nodes.push(line(corners.map(r => [r, clippedArgument(tokenFor(r), view.clip)]), "clipped"));
  }
  parts.forEach((part, i) => {
    nodes.push(line(part.points.map(([r, found]) => [r, of(found)]), "rule-line"));
    const next = parts[i + 1];
    if (!next) return;
    const jump = [part.points.at(-1), next.points[0]].map(([, found]) => [part.end, of(found)]);
    if (Math.abs(y(jump[0][1]) - y(jump[1][1])) > 1.5) nodes.push(line(jump, "jump"));
  });
  if (limit !== null) {
    nodes.push(svgEl("rect", { class: "faded", x: x(limit), y: PLOT.top, width: x(domain[1]) - x(limit), height: bottom - PLOT.top }));
    nodes.push(svgEl("rect", { class: "impossible", fill: `url(#hatch-impossible-${kind})`, x: x(limit), y: PLOT.top, width: x(domain[1]) - x(limit), height: bottom - PLOT.top }));
  }
  nodes.push(...tokenMarks(kind, view, x, y, bottom, domain, range));
  layer.replaceChildren(...nodes);
  return { domain, x, y, width, removes, isCut: limit !== null };
}

// What a rule leaves of the unclipped weight: not more than all of it, and nothing where it turns it round.
function keptOf({ weight, unclipped }) {
  const sign = Math.sign(unclipped);
  return sign * Math.min(Math.abs(unclipped), Math.max(0, weight * sign));
}

// What lies far outside is drawn a little outside: browsers lose their way in huge coordinates.
function heightOf(value, [low, high]) {
  const far = 8 * (high - low), v = Math.min(Math.max(value, low - far), high + far);
  return PLOT.top + (1 - (v - low) / (high - low)) * (PLOT.height - PLOT.top - PLOT.bottom);
}

function definitions(kind, width, bottom) {
  const defs = svgEl("defs");
  const clip = svgEl("clipPath", { id: `clip-${kind}` });
  clip.append(svgEl("rect", { x: PLOT.left, y: PLOT.top, width: width - PLOT.left - PLOT.right, height: bottom - PLOT.top }));
  defs.append(clip);
  for (const name of ["removed", "impossible"]) {
    const turn = name === "removed" ? 45 : -45;
    const pattern = svgEl("pattern", { id: `hatch-${name}-${kind}`, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${turn})` });
    pattern.append(svgEl("line", { class: `hatch-${name}`, x1: 0, y1: 0, x2: 0, y2: 6 }));
    defs.append(pattern);
  }
  return defs;
}

function regionBand(part, x, bottom, isHere, words) {
  const left = x(part.start), right = x(part.end);
  const band = svgEl("rect", { class: `band r-${part.region}${isHere ? " here" : ""}`, x: left, y: PLOT.top, width: Math.max(0, right - left), height: bottom - PLOT.top });
  const name = words.say(`region.${part.region}`), size = words.language === "zh" ? 12 : 6.6;
  if (right - left < name.length * size + 4) return [band];
  return [band, svgEl("text", { class: `band-name${isHere ? " here" : ""}`, x: (left + right) / 2, y: PLOT.top - 8, "text-anchor": "middle" }, name)];
}

function axes(domain, range, x, y, width, bottom) {
  const nodes = [];
  for (const [tick, text] of ticksBetween(range[0], range[1], 5)) {
    nodes.push(svgEl("line", { class: tick === 0 ? "zero" : "grid-line", x1: PLOT.left, x2: width - PLOT.right, y1: y(tick), y2: y(tick) }));
    nodes.push(svgEl("text", { x: PLOT.left - 5, y: y(tick) + 4, "text-anchor": "end" }, text));
  }
  const isNarrow = domain[1] - domain[0] < 0.5;
  for (const [tick, text] of ticksBetween(domain[0], domain[1], width < 360 ? 3 : isNarrow ? 4 : 6)) {
    nodes.push(svgEl("text", { x: x(tick), y: bottom + 15, "text-anchor": "middle" }, text));
  }
  nodes.push(svgEl("text", { class: "axis-name", x: width - PLOT.right + 8, y: bottom + 4, "text-anchor": "start" }, "r"));
  return nodes;
}

// The token's line down to the axis and, on the value, its slope.
function tokenMarks(kind, view, x, y, bottom, domain, range) {
  const at = x(Math.min(Math.max(view.ratio, domain[0]), domain[1])), found = view.found;
  const nodes = [svgEl("line", { class: "drop", x1: at, x2: at, y1: PLOT.top, y2: bottom })];
  if (kind === "weight") {
    nodes.push(svgEl("line", { class: `lever r-${found.region}`, x1: at, x2: at, y1: y(0), y2: y(found.weight) }));
  } else if (hasSlope(view)) {
    const slope = found.weight / view.ratio; // dJ/dr, since w = dJ/d log r
    const run = x(domain[1]) - x(domain[0]); // pixels of the whole axis, and what a line of this slope climbs over it
    const rise = (slope * (domain[1] - domain[0]) * (bottom - PLOT.top)) / (range[1] - range[0]);
    const scale = 34 / Math.hypot(run, rise);
    nodes.push(svgEl("line", {
      class: `slope r-${found.region}`, x1: at - run * scale, x2: at + run * scale,
      y1: y(found.value) + rise * scale, y2: y(found.value) - rise * scale,
    }));
  }
  return nodes;
}

const pathOf = (points, x, y) =>
  points.filter(([, v]) => Number.isFinite(v)).map(([r, v], i) => `${i ? "L" : "M"}${x(r).toFixed(1)} ${y(v).toFixed(1)}`).join("");

// --- the handle -----------------------------------------------------------------------------------------------------------

function makeHandle() {
  const handle = svgEl("g", { class: "handle", tabindex: "0", role: "slider" });
  handle.append(svgEl("circle", { class: "reach", r: 22 }), svgEl("circle", { class: "dot", r: 8 }));
  return handle;
}

function describeHandle(handle, plot, view, text) {
  handle.setAttribute("aria-valuemin", plot.domain[0]);
  handle.setAttribute("aria-valuemax", plot.domain[1]);
  handle.setAttribute("aria-valuenow", view.ratio);
  handle.setAttribute("aria-valuetext", `r = ${shortFigure(view.ratio)}; ${text}`);
  handle.setAttribute("aria-label", "r");
}

// Rounded to what a pixel is worth, so that numbers stay short.
function ratioAt(plot, share) {
  const [low, high] = plot.domain, span = high - low;
  const step = 10 ** Math.floor(Math.log10(span / 150));
  const least = low > 0 ? low : Math.max(step, span * 5e-3);
  return Number(Math.min(high, Math.max(least, Math.round((low + share * span) / step) * step)).toPrecision(10));
}

function followPointer(svg, handle, plotNow, onRatio) {
  const take = event => {
    const plot = plotNow(), box = svg.getBoundingClientRect();
    const inside = ((event.clientX - box.left) / box.width) * plot.width - PLOT.left;
    onRatio(ratioAt(plot, inside / (plot.width - PLOT.left - PLOT.right)));
  };
  svg.addEventListener("pointerdown", event => {
    if (event.button !== 0 || !plotNow()) return;
    svg.setPointerCapture(event.pointerId);
    take(event);
    handle.focus({ preventScroll: true });
    event.preventDefault();
  });
  svg.addEventListener("pointermove", event => { if (svg.hasPointerCapture(event.pointerId)) take(event); });
}

function followKeys(handle, plotNow, viewNow, onRatio) {
  handle.addEventListener("keydown", event => {
    const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10 }[event.key];
    if (way === undefined && event.key !== "Home") return;
    event.preventDefault();
    if (event.key === "Home") { onRatio(1); return; }
    const plot = plotNow(), [low, high] = plot.domain;
    const share = (viewNow().ratio - low) / (high - low) + (way * (event.shiftKey ? 5 : 1)) / 100;
    onRatio(ratioAt(plot, Math.min(1, Math.max(0, share))));
  });
}
