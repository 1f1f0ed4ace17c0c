// The axis of the log ratio, which the map and the distribution share, and what a rule's facts say about places on it.
import { niceTicks } from "./charts.js";
import { svgEl } from "./dom.js";
import { isNumber, words } from "./format.js";

export const SIDE = { left: 50, right: 12 };

// From log ratio to place; what lies beyond the edges is shown at them.
export function logAxis(edges, width) {
  const low = edges[0], high = edges[edges.length - 1], left = SIDE.left, right = width - SIDE.right;
  const x = value => left + ((Math.min(high, Math.max(low, value)) - low) / (high - low)) * (right - left);
  const bin = place => Math.max(0, Math.min(edges.length - 2, Math.floor(((place - left) / (right - left)) * (edges.length - 1))));
  return { edges, low, high, left, right, width, x, bin, resolution: (high - low) / (edges.length - 1) };
}

// A ratio with as many digits as tell two bins apart.
export function ratioText(logRatio, resolution) {
  const ratio = Math.exp(logRatio);
  if (!(ratio > 0) || !Number.isFinite(ratio)) return String(ratio);
  const decimals = Math.max(0, Math.min(12, -Math.floor(Math.log10(resolution * ratio))));
  return ratio >= 1e5 || ratio < 1e-9 ? ratio.toExponential(1) : String(Number(ratio.toFixed(decimals)));
}

// "0.98 – 1.02", and at both ends what lies beyond.
export function ratioRange(axis, bin, count = 1) {
  const text = value => ratioText(value, axis.resolution);
  if (bin === 0) return `r below ${text(axis.edges[1])}`;
  if (bin + count === axis.edges.length - 1) return `r above ${text(axis.edges[bin])}`;
  return `r ${text(axis.edges[bin])} to ${text(axis.edges[bin + count])}`;
}

const ROUND_RATIOS = [1, 0.5, 2, 0.8, 1.2, 0.1, 10, 0.2, 5, 0.01, 100, 1.5, 0.3, 3, 0.001, 1000, 1e-4, 1e4];

// [log ratio, label], far enough from each other to be read.
export function ratioTicks(axis) {
  const inner = [axis.edges[1], axis.edges[axis.edges.length - 2]];
  const near = 0.25 > Math.max(-inner[0], inner[1]);
  const ratios = near ? niceTicks(inner[0], inner[1], Math.max(2, Math.min(10, axis.width / 100))).map(value => 1 + value) : ROUND_RATIOS;
  const chosen = [];
  for (const ratio of ratios) {
    const value = Math.log(ratio), label = String(Number(ratio.toPrecision(12)));
    if (value < inner[0] || value > inner[1]) continue;
    const room = one => (one.label.length + label.length) * 3.2 + 10;
    if (chosen.every(one => Math.abs(axis.x(one.value) - axis.x(value)) > room(one))) chosen.push({ value, label });
  }
  return chosen.sort((a, b) => a.value - b.value);
}

export function drawRatioAxis(svg, axis, y) {
  svg.append(svgEl("line", { class: "base", x1: axis.left, x2: axis.right, y1: y, y2: y }));
  for (const { value, label } of ratioTicks(axis)) {
    svg.append(svgEl("line", { class: "base", x1: axis.x(value), x2: axis.x(value), y1: y, y2: y + 4 }));
    svg.append(svgEl("text", { x: axis.x(value), y: y + 15, "text-anchor": "middle" }, label));
  }
  const below = y + 29, text = (x, anchor, said) => svg.append(svgEl("text", { x, y: below, "text-anchor": anchor }, said));
  text(axis.left, "start", "◂ and beyond");
  text(axis.right, "end", "and beyond ▸");
  text((axis.left + axis.right) / 2, "middle", axis.width > 480 ? "ratio r = π_new / π_old" : "ratio r");
}

// Where the rule's regions meet: each place once, with the name that the rule's parameters give it.
export function boundsOf(rule) {
  const bounds = [];
  for (const one of rule ? rule.boundaries : []) {
    if (!isNumber(one.log_ratio)) continue;
    const same = bounds.find(other => Math.abs(other.logRatio - one.log_ratio) <= 1e-9 * (1 + Math.abs(one.log_ratio)));
    if (same) same.advantages.push(one.advantage);
    else bounds.push({ logRatio: one.log_ratio, label: boundLabel(rule, one), advantages: [one.advantage] });
  }
  return bounds.sort((a, b) => a.logRatio - b.logRatio);
}

function boundLabel(rule, bound) {
  const above = bound.log_ratio > 0, value = nearOne(bound.ratio);
  const fits = Object.entries(rule.parameters || {}).filter(([, given]) => isNumber(given)).flatMap(([name, given]) => {
    const sign = name.replace(/^eps/, "ε");
    const forms = [[1 - given, `1−${sign}`], [1 + given, `1+${sign}`], [given, sign], [Math.exp(-given), `exp(−${sign})`], [Math.exp(given), `exp(${sign})`]];
    return forms.filter(([ratio]) => Math.abs(ratio - bound.ratio) <= 1e-6 * bound.ratio).map(([, form]) => ({ name, form }));
  });
  // Where ε_low and ε_high are equal, each names its own side.
  const other = above ? /low|neg/ : /high|pos/;
  const best = fits.find(one => !other.test(one.name)) || fits[0];
  return best ? `${best.form} = ${value}` : `r = ${value}`;
}

// Three digits of its distance from 1: 1.0004 is not 1.
function nearOne(ratio) {
  const apart = Math.abs(ratio - 1);
  return String(Number(ratio.toFixed(apart > 0 ? Math.max(2, Math.min(12, 2 - Math.floor(Math.log10(apart)))) : 0)));
}

// The intervals between a rule's bounds for one sign of the advantage, from low to high. `stopped`: the weight is 0 all over it.
export function areasOf(rule, sign) {
  if (!rule || rule.boundaries_vary_with) return [];
  const bounds = rule.boundaries.filter(one => one.advantage === sign && isNumber(one.log_ratio));
  // A rule that was asked and has no bounds has one region.
  const names = bounds.length ? [bounds[0].below, ...bounds.map(one => one.above)] : rule.weights && !rule.boundaries.length ? ["inside"] : [];
  return names.map((region, index) => {
    const from = index ? bounds[index - 1].log_ratio : -Infinity, to = index < bounds.length ? bounds[index].log_ratio : Infinity;
    return { region, sign, from, to, stopped: weightIsZero(rule, sign, from, to) };
  });
}

function weightIsZero(rule, sign, from, to) {
  if (!rule.weights) return false;
  const { log_ratio: places, good, bad } = rule.weights;
  const inside = (sign > 0 ? good : bad).filter((_, index) => places[index] > from && places[index] < to);
  return inside.length > 0 && inside.every(weight => weight === 0);
}

// The sentence that stands where no bound can be drawn; null where they can.
export function boundsVary(rule) {
  if (!rule || !rule.boundaries_vary_with) return null;
  const why = {
    probability: "each token has bounds of its own, by its probability",
    minibatch: "they depend on the other tokens of the minibatch",
    advantage: "they depend on the size of the advantage",
  }[rule.boundaries_vary_with] || `they depend on ${words(rule.boundaries_vary_with)}`;
  return `The bounds of ${rule.title} are not drawn: ${why}. The colours say in which region the rule found each token.`;
}

// Diagonal lines over a rectangle as a path's data, on one lattice for all rectangles of a picture. Paths instead of a
// fill pattern: they survive every export.
export function hatchData(left, top, right, bottom) {
  const gap = 7, parts = [];
  for (let sum = Math.ceil((left + top) / gap) * gap; sum < right + bottom; sum += gap) {
    const x0 = Math.max(left, sum - bottom), x1 = Math.min(right, sum - top);
    if (x1 > x0) parts.push(`M${x0.toFixed(1)} ${(sum - x0).toFixed(1)}L${x1.toFixed(1)} ${(sum - x1).toFixed(1)}`);
  }
  return parts.join("");
}

export const boxData = (left, top, right, bottom) =>
  `M${left.toFixed(1)} ${top.toFixed(1)}H${right.toFixed(1)}V${bottom.toFixed(1)}H${left.toFixed(1)}Z`;

// 1234567 -> 1,234,567
export const countText = count => count.toLocaleString("en-GB");

// 12000 -> 12k, for axes
export function shortCount(count) {
  const [size, letter] = count >= 1e9 ? [1e9, "G"] : count >= 1e6 ? [1e6, "M"] : count >= 1e3 ? [1e3, "k"] : [1, ""];
  return Number((count / size).toPrecision(2)) + letter;
}
