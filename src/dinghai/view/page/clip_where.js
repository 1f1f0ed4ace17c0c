// Where it clips: by position, by token, by probability and by reward.
import { countText } from "./clip_axis.js";
import { el, svgEl } from "./dom.js";
import { crosshair } from "./figure.js";
import { formatNumber, formatShare, isNumber, axisShare } from "./format.js";

const LANES = [
  { name: "stopped, of the tokens with a signal", short: "stopped", value: row => (row.signal ? row.stopped / row.signal : 0), class: "k0", height: 62 },
  { name: "share of all removed gradient", short: "removed", value: (row, all) => (all.removed > 0 ? row.removed / all.removed : 0), class: "k5", height: 62 },
  { name: "share of the tokens", short: "tokens", value: (row, all) => (all.tokens ? row.tokens / all.tokens : 0), class: "soft", height: 34 },
];
const LEFT = 46, RIGHT = 8, GAP = 20;

export function totalOf(rows) {
  const all = { tokens: 0, signal: 0, stopped: 0, outside: 0, gradient: 0, removed: 0 };
  for (const row of rows) for (const name of Object.keys(all)) if (isNumber(row[name])) all[name] += row[name];
  return all;
}

// Three lanes over the same bins: how often tokens are stopped there, how much of the lost gradient is there, how many tokens.
export function drawLanes(card, data, width) {
  const { rows, labels, axis } = data, all = totalOf(rows);
  const slot = (width - LEFT - RIGHT) / rows.length, x = place => LEFT + place * slot;
  const lanes = LANES.map(lane => ({ ...lane, values: rows.map(row => lane.value(row, all)) }));
  const heightOf = lane => (lane.values.some(value => value > 0) ? lane.height : 4);
  const height = lanes.reduce((sum, lane) => sum + heightOf(lane) + GAP, 0) + 34;
  const svg = svgEl("svg", { viewBox: `0 0 ${width} ${height}`, height, class: "lanes" });
  let top = 0;
  for (const lane of lanes) {
    const { values } = lane, most = Math.max(...values, 0), floor = top + GAP + heightOf(lane);
    svg.append(svgEl("text", { class: "label small", x: LEFT, y: top + 13 }, most > 0 ? lane.name : `${lane.name}: none`));
    if (most > 0) svg.append(svgEl("text", { x: LEFT - 6, y: top + GAP + 9, "text-anchor": "end" }, axisShare(formatShare(Number(most.toPrecision(2))))));
    if (most > 0) svg.append(svgEl("text", { x: LEFT - 6, y: floor + 1, "text-anchor": "end" }, "0"));
    const gap = slot > 6 ? 1 : 0.3;
    const bars = values.map((value, place) => (value > 0
      ? `M${(x(place) + gap).toFixed(1)} ${floor}V${Math.min(floor - 0.8, floor - (value / most) * lane.height).toFixed(1)}H${(x(place + 1) - gap).toFixed(1)}V${floor}Z` : "")).join("");
    if (bars) svg.append(svgEl("path", { class: `column ${lane.class}`, d: bars }));
    svg.append(svgEl("line", { class: "base", x1: LEFT, x2: width - RIGHT, y1: floor, y2: floor }));
    top = floor;
  }
  drawLabels(svg, labels, x, top + 14, width);
  svg.append(svgEl("text", { x: (LEFT + width - RIGHT) / 2, y: top + 29, "text-anchor": "middle" }, axis));
  const plot = { svg, width, top: GAP - 4, bottom: top, x: place => x(place) + slot / 2 };
  crosshair(card, plot, rows.map((_, place) => place), place => [el("b", "", data.titles[place]), rowTable(rows[place], all)]);
  return svg;
}

function drawLabels(svg, labels, x, y, width) {
  let end = -Infinity;
  for (const [place, text] of labels) {
    const half = text.length * 3.1, middle = Math.min(x(place), width - half);
    if (middle - half < end + 7) continue;
    end = middle + half;
    svg.append(svgEl("text", { x: middle, y, "text-anchor": "middle" }, text));
  }
}

function rowTable(row, all) {
  const line = (name, value) => el("tr", "", el("td", "", name), el("td", "", value));
  return el("table", "",
    line("tokens", countText(row.tokens)), line("with a signal", countText(row.signal)),
    line("of these stopped", `${countText(row.stopped)}${row.signal ? `, ${formatShare(row.stopped / row.signal)}` : ""}`),
    line("outside the band", `${countText(row.outside)}${row.signal ? `, ${formatShare(row.outside / row.signal)}` : ""}`),
    line("of their gradient removed", row.gradient > 0 ? formatShare(row.removed / row.gradient) : "–"),
    line("of all removed gradient", all.removed > 0 ? formatShare(row.removed / all.removed) : "–"));
}

// Rows as the lanes show them: { rows, titles, labels: [[place in rows, text]] }.

// Of completions few are long: the last positions, which together hold hardly a token, are shown as one.
export function positionRows({ edges, rows }) {
  const all = totalOf(rows), few = sum => sum.tokens < 0.004 * all.tokens && sum.removed <= 0.004 * all.removed;
  let kept = rows.length, tail = totalOf([]);
  while (kept > 1 && few(totalOf([tail, rows[kept - 1]]))) { kept -= 1; tail = totalOf([tail, rows[kept]]); }
  const joined = rows.length - kept > 1;
  const shown = joined ? [...rows.slice(0, kept), tail] : rows;
  const ends = joined ? [...edges.slice(0, kept + 1), edges[rows.length]] : edges;
  const text = shown.map((_, place) => (ends[place + 1] - ends[place] > 1 ? `${ends[place]}–${ends[place + 1] - 1}` : String(ends[place])));
  return { rows: shown, titles: text.map(one => `position ${one}`), labels: text.map((one, place) => [place + 0.5, one]), edges: ends };
}

export const edgeText = value => String(Number(value.toPrecision(3)));

export function rangeRows({ edges, rows }, what) {
  const titles = rows.map((_, place) => `${what} ${edgeText(edges[place])} to ${edgeText(edges[place + 1])}`);
  return { rows, titles, labels: edges.map((edge, place) => [place, edgeText(edge)]), edges };
}

// The shortest run of neighbouring rows, by tokens, that holds half of what was removed: [first, last].
export function halfOfRemoved(rows) {
  const all = totalOf(rows);
  if (!(all.removed > 0)) return null;
  let best = null, first = 0, removed = 0, tokens = 0;
  rows.forEach((row, last) => {
    removed += row.removed;
    tokens += row.tokens;
    while (first < last && removed - rows[first].removed >= all.removed / 2) { removed -= rows[first].removed; tokens -= rows[first].tokens; first += 1; }
    if (removed >= all.removed / 2 && (!best || tokens < best.tokens)) best = { first, last, removed, tokens };
  });
  return best;
}

// `place(first, last)` names a run of rows: "at positions 3–9".
export function whereSentence(rows, place) {
  const all = totalOf(rows), half = halfOfRemoved(rows);
  if (!half) return all.stopped ? "Tokens were stopped, but they would have had no gradient." : "The rule took no gradient away here.";
  const share = formatShare(half.removed / all.removed), tokens = formatShare(half.tokens / all.tokens);
  if (half.first === 0 && half.last === rows.length - 1) return "What was removed is spread over all of them.";
  return `${share} of the removed gradient is ${place(half.first, half.last)}: ${tokens} of all tokens.`;
}

const tokenName = row => row.text || `⟨${row.token}⟩`;

export function tokenSentence({ by_token: listed, removed: all }) {
  if (!(all > 0)) return "The rule took no gradient away here.";
  let sum = 0, count = 0;
  while (count < listed.length && sum < all / 2) { sum += listed[count].removed; count += 1; }
  const share = formatShare(sum / all);
  if (sum < all / 2) return `The ${listed.length} tokens of the vocabulary that lost most carry ${share} of the removed gradient: it is spread over many.`;
  const names = count <= 6 ? `: ${listed.slice(0, count).map(row => `“${tokenName(row)}”`).join(", ")}` : "";
  return `${share} of the removed gradient is on ${count === 1 ? "one token" : `${count} tokens`} of the vocabulary${names}.`;
}

// Those that lost most gradient, with bars.
export function tokenTable({ by_token: listed, removed: all }) {
  const stoppedShare = row => (row.signal ? row.stopped / row.signal : 0);
  // A token that was seen a few times does not set the scale.
  const usual = listed.filter(row => row.signal >= 20), highest = Math.max(1e-12, ...(usual.length ? usual : listed).map(stoppedShare)), most = Math.max(1e-12, ...listed.map(row => row.removed));
  const head = ["token", "seen", "stopped, of those with a signal", "share of all removed gradient"].map((name, place) => {
    const cell = el("th", place === 1 ? "number" : "", name);
    cell.scope = "col";
    return cell;
  });
  const stopped = listed.map(row => `${formatShare(stoppedShare(row))} (${countText(row.stopped)})`);
  const removed = listed.map(row => formatShare(all > 0 ? row.removed / all : 0));
  const rows = listed.map((row, place) => {
    const name = el("th", "", el("span", "tokenname", tokenName(row)));
    name.scope = "row";
    name.title = `id ${row.token}`;
    return el("tr", "", name, el("td", "number", countText(row.tokens)),
      el("td", "", barCell(stoppedShare(row) / highest, "k0", stopped[place], longestOf(stopped))),
      el("td", "", barCell(row.removed / most, "k5", removed[place], longestOf(removed))));
  });
  return el("table", "tokentable", el("thead", "", el("tr", "", ...head)), el("tbody", "", ...rows));
}

const longestOf = texts => Math.max(...texts.map(text => text.length));

// A bar and its figure, which has room for the longest one of its column, in characters: else bars of one length differ.
function barCell(part, classes, text, longest) {
  const fill = el("span", `fill ${classes}`);
  fill.hidden = !(part > 0);
  fill.style.width = `${Math.round(100 * Math.max(0, Math.min(1, part)))}%`;
  const figure = el("span", "number", text);
  figure.style.flexBasis = `${longest + 1}ch`;  // % is wider than a digit
  return el("div", "barcell", el("span", "track", fill), figure);
}
