// How far the ratios went from 1: their distribution, by region, against the rule's bounds and the noise of a log-prob.
import { boundsOf, boundsVary, boxData, countText, drawRatioAxis, hatchData, logAxis, ratioRange, ratioText, shortCount, SIDE } from "./clip_axis.js";
import { stoppedRegions } from "./clip_map.js";
import { el, svgEl } from "./dom.js";
import { crosshair } from "./figure.js";
import { formatShare, words } from "./format.js";

const TOP = 34, HEIGHT = 190;

export function drawRatios(card, data, width) {
  const { census, rule, linear } = data, axis = logAxis(census.ratio.edges, width);
  const bottom = TOP + HEIGHT, total = bottom + 36;
  const svg = svgEl("svg", { viewBox: `0 0 ${width} ${total}`, height: total, class: "ratios" });
  const names = Object.keys(census.ratio.regions), counts = axis.edges.slice(1).map((_, bin) => names.map(name => census.ratio.regions[name][bin]));
  const most = Math.max(1, ...counts.map(one => one.reduce((sum, count) => sum + count, 0)));
  const scale = linear ? count => count / (most * 1.04) : count => (count > 0 ? Math.log(count / 0.6) / Math.log((most * 1.3) / 0.6) : 0);
  const y = count => bottom - scale(count) * HEIGHT;
  drawCounts(svg, axis, y, most, linear);
  drawNoise(svg, axis, census.ratio.noise, bottom, rule);
  drawColumns(svg, axis, names, counts, y, bottom, stoppedRegions(census, data.regions));
  drawLimits(svg, axis, rule, bottom);
  drawRatioAxis(svg, axis, bottom);
  exploreBins(card, svg, axis, names, counts, bottom);
  return svg;
}

function drawCounts(svg, axis, y, most, linear) {
  const ticks = linear ? [0.25, 0.5, 0.75, 1].map(part => part * 10 ** Math.floor(Math.log10(most))).filter(count => count >= 1)
    : Array.from({ length: Math.floor(Math.log10(most)) + 1 }, (_, power) => 10 ** power);
  if (linear && most / ticks[ticks.length - 1] > 2) ticks.push(...[2, 3, 4, 5, 6, 7, 8, 9].map(times => times * ticks[ticks.length - 1]).filter(count => count <= most));
  for (const tick of ticks) {
    svg.append(svgEl("line", { class: "rule", x1: axis.left, x2: axis.right, y1: y(tick), y2: y(tick) }));
    svg.append(svgEl("text", { x: SIDE.left - 7, y: y(tick) + 4, "text-anchor": "end" }, shortCount(tick)));
  }
}

// A column's height is its number of tokens; regions share it in proportion, on a logarithmic scale too.
function drawColumns(svg, axis, names, counts, y, bottom, stopped) {
  const paths = names.map(() => ""), hatches = [];
  counts.forEach((column, bin) => {
    const total = column.reduce((sum, count) => sum + count, 0);
    if (!total) return;
    const left = axis.x(axis.edges[bin]), right = axis.x(axis.edges[bin + 1]), height = bottom - y(total);
    let floor = bottom;
    column.forEach((count, index) => {
      if (!count) return;
      const top = floor - (height * count) / total;
      paths[index] += boxData(left + 0.3, top, Math.max(left + 0.8, right - 0.3), floor);
      if (stopped.has(names[index])) hatches.push(hatchData(left + 0.3, top, right - 0.3, floor));
      floor = top;
    });
  });
  names.forEach((name, index) => { if (paths[index]) svg.append(svgEl("path", { class: `column r-${name}`, d: paths[index] })); });
  if (hatches.length) svg.append(svgEl("path", { class: "hatch over", d: hatches.join("") }));
}

function drawLimits(svg, axis, rule, bottom) {
  let end = -Infinity;
  for (const one of boundsOf(rule)) {
    if (one.logRatio <= axis.low || one.logRatio >= axis.high) continue;
    const x = axis.x(one.logRatio), size = one.label.length * 5.9;
    const toLeft = one.logRatio < 0 ? x - size > 4 : x + size > axis.width;
    const from = toLeft ? x - size : x, row = from < end + 6 ? 1 : 0;
    end = from + size;
    svg.append(svgEl("line", { class: "bound", x1: x, x2: x, y1: 14 - row * 2, y2: bottom }));
    svg.append(svgEl("text", { class: "label", x: x + (toLeft ? 2 : -2), y: 10 + row * 13, "text-anchor": toLeft ? "end" : "start" }, one.label));
  }
}

// How far two evaluations of the same weights are apart: what lies within that says nothing about the policy.
function drawNoise(svg, axis, noise, bottom, rule) {
  if (!noise || !(noise.sampler_q95 > 0)) return;
  const band = (value, least) => {
    const half = Math.max(least, (axis.x(value) - axis.x(-value)) / 2), middle = axis.x(0);
    svg.append(svgEl("path", { class: "noise", d: boxData(middle - half, TOP - 6, middle + half, bottom) }));
    return middle + half;
  };
  band(noise.sampler_median, 0.5);
  const right = band(noise.sampler_q95, 1), label = `noise ±${smallText(noise.sampler_q95)}`;
  const next = Math.min(axis.right, ...boundsOf(rule).filter(one => one.logRatio > noise.sampler_q95).map(one => axis.x(one.logRatio)));
  if (right + 12 + label.length * 5.8 < next) svg.append(svgEl("text", { class: "label small", x: right + 4, y: TOP + 2 }, label));
}

const smallText = value => (value < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(2))));

function exploreBins(card, svg, axis, names, counts, bottom) {
  const all = counts.flat().reduce((sum, count) => sum + count, 0);
  const plot = { svg, width: axis.width, top: TOP - 6, bottom, x: bin => (axis.x(axis.edges[bin]) + axis.x(axis.edges[bin + 1])) / 2 };
  crosshair(card, plot, counts.map((_, bin) => bin), bin => {
    const total = counts[bin].reduce((sum, count) => sum + count, 0);
    const rows = names.map((name, index) => [name, counts[bin][index]]).filter(([, count]) => count > 0)
      .map(([name, count]) => el("tr", "", el("td", `r-${name}`, el("i"), words(name)), el("td", "", countText(count))));
    return [el("b", "", ratioRange(axis, bin)), el("div", "", `${countText(total)} tokens, ${formatShare(all ? total / all : 0)}`), el("table", "", ...rows)];
  });
}

// What the distribution shows: how wide it is, whether the bounds are reached, and how far above the noise they stand.
// oneUpdate: "first" where the tokens are those of each batch's first update, "only" where each got but one; else null.
// oneEvaluation: the sampler's numbers may have been taken for log π_old.
export function ratioSentences(census, rule, oneUpdate, oneEvaluation) {
  const { edges, regions } = census.ratio, axis = logAxis(edges, 400);
  const counts = edges.slice(1).map((_, bin) => Object.values(regions).reduce((sum, row) => sum + row[bin], 0));
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return [census.unscored ? "No token here was scored, so there is no ratio to show." : "No token is recorded here."];
  const middle = (counts.length - 1) / 2, said = [], width = reach(counts, middle, 0.99, total);
  const who = census.unscored ? "tokens that were scored" : "tokens";
  const ends = [ratioText(edges[middle - width], axis.resolution), ratioText(edges[middle + width + 1], axis.resolution)];
  const allInMiddle = counts[middle] === total;
  if (width < middle) said.push(`${allInMiddle ? "All" : "99% of the"} ${who} have a ratio between ${ends[0]} and ${ends[1]}.`);
  else {
    const ends = [edges[1], edges[edges.length - 2]].map(edge => ratioText(edge, axis.resolution));
    said.push(`${formatShare((counts[0] + counts[counts.length - 1]) / total)} of the ${who} lie beyond the picture, with a ratio below ${ends[0]} or above ${ends[1]}.`);
  }
  said.push(...boundSentences(census, rule, counts, allInMiddle && oneUpdate), ...noiseSentences(census.ratio.noise, rule, oneEvaluation));
  return said;
}

// How many bins to each side of the middle hold `share` of all.
function reach(counts, middle, share, total) {
  let sum = counts[middle], width = 0;
  while (sum < share * total && width < middle) { width += 1; sum += counts[middle - width] + counts[middle + width]; }
  return width;
}

export const nearestBound = rule => Math.min(Infinity, ...boundsOf(rule).map(one => Math.abs(one.logRatio)));

function boundSentences(census, rule, counts, oneUpdate) {
  const { outside } = census, bound = nearestBound(rule);
  const vary = boundsVary(rule), hasBounds = Number.isFinite(bound) || vary !== null;
  if (oneUpdate && hasBounds) {
    const which = oneUpdate === "first" ? "This is the first update on each batch" : "Each batch got a single update";
    return [`${which}: the policy was still the one that sampled it, so every ratio is 1 and no bound on the ratio can act.`];
  }
  if (rule && !hasBounds) return [`${rule.title} has no bounds on the ratio.`];
  if (!hasBounds) return [];
  if (outside > 0) return [`${formatShare(outside / census.signal)} of the tokens with a signal lie outside the band.`];
  const { edges } = census.ratio;
  const near = counts.reduce((sum, count, bin) => sum + (Math.min(Math.abs(edges[bin]), Math.abs(edges[bin + 1])) >= bound / 2 ? count : 0), 0);
  return [near === 0 && Number.isFinite(bound) ? "No token comes even half way to a bound: wider bounds would change nothing." : "No token lies outside the band."];
}

function noiseSentences(noise, rule, oneEvaluation) {
  if (oneEvaluation) return ["The sampler's log-probs were taken for those of π_old, so the noise between two evaluations is not known."];
  if (!noise) return ["The log-probs of the sampler were not recorded, so the noise of a log-prob is not known."];
  if (!(noise.sampler_q95 > 0)) return ["Sampler and trainer agree on every log-prob to the last bit."];
  const bound = nearestBound(rule), q95 = smallText(noise.sampler_q95);
  const said = `Two evaluations of the same weights, the sampler's and the trainer's, differ by up to ${q95} in a token's log-prob (19 of 20 tokens; grey band).`;
  if (!Number.isFinite(bound)) return [said];
  if (rule.ratio === "sequence-product") return [`${said} The rule bounds the ratio of whole sequences, in which these add up.`];
  if (rule.ratio !== "token") return [`${said} The rule bounds their mean over a sequence, which differs by less.`];
  if (noise.sampler_q95 >= bound) return [`${said} The bounds lie within that noise: they stop tokens whose probability did not change. Widen ε, or bring sampler and trainer closer.`];
  if (noise.sampler_q95 >= bound / 10) return [`${said} That is ${formatShare(noise.sampler_q95 / bound)} of the way to the nearest bound.`];
  return [`${said} The nearest bound is ${shortCount(Math.floor(bound / noise.sampler_q95))} times as far away.`];
}
