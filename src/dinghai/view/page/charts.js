// Charts in SVG: lines, stacked areas, bars. Each is drawn at the width of its card and again when that changes.
import { el, svgEl } from "./dom.js";
import { crosshair, chartBox } from "./figure.js";
import { formatNumber, formatShare, isNumber, updateName, words } from "./format.js";

const MARGIN = { left: 46, right: 10, top: 8, bottom: 20 };

// A chart: { title, note, share, series: [{ name, points }] } or, for bars, { …, labels, series: [{ name, values }] }.
// A point is [x, y]; or [x, mean, low, high] where it stands for `every` steps, the first of which is x; `last` is then what
// the last of all steps had.
// Series of several runs carry `run`, the number of their run, which gives them their colour; then dashes tell apart what
// is of one run. A value that is not finite is its name as a string, and is marked ×.

export function niceTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find(factor => factor * power >= rough) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function frame(width, height, xDomain, yDomain, format) {
  const svg = svgEl("svg", { viewBox: `0 0 ${width} ${height}`, height });
  const [x0, x1] = xDomain, [y0, y1] = yDomain;
  const plotWidth = width - MARGIN.left - MARGIN.right, plotHeight = height - MARGIN.top - MARGIN.bottom;
  const x = value => MARGIN.left + (x1 === x0 ? 0.5 : (value - x0) / (x1 - x0)) * plotWidth;
  const y = value => MARGIN.top + (1 - (value - y0) / (y1 - y0)) * plotHeight;
  for (const tick of niceTicks(y0, y1, 4)) {
    svg.append(svgEl("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
    svg.append(svgEl("text", { x: MARGIN.left - 7, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
  }
  return { svg, x, y, width, height, top: MARGIN.top, bottom: height - MARGIN.bottom };
}

// Ticks in full: a rounded one would stand in the wrong place.
function tickText(chart) {
  return value => (chart.share ? `${Number((value * 100).toPrecision(5))}%` : formatNumber(value));
}

function stepAxis(plot, xDomain) {
  plot.svg.append(svgEl("text", { x: MARGIN.left - 7, y: plot.height - 5, "text-anchor": "end" }, "step"));
  const ticks = xDomain[0] === xDomain[1] ? [xDomain[0]] : niceTicks(xDomain[0], xDomain[1], 5).filter(Number.isInteger);
  for (const tick of ticks) {
    plot.svg.append(svgEl("text", { x: plot.x(tick), y: plot.height - 5, "text-anchor": "middle" }, tick.toLocaleString("en")));
  }
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (isNumber(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return low > high ? [0, 1] : [low, high];
}

// The y range of a line chart: from zero where zero is near, so that small wobbles do not look like changes.
function lineRange(chart) {
  let [low, high] = extent(chart.series.flatMap(one => one.points.flatMap(point => point.slice(1))));
  if (low > 0 && low < 0.7 * high) low = 0;
  if (chart.share && low > 0 && high <= 1 && high - low > 0.25) low = 0;
  if (high === low) { const pad = Math.abs(high) * 0.1 || 0.01; high += pad; low = low === 0 ? 0 : low - pad; }
  const pad = (high - low) * 0.06;
  const top = chart.share && high <= 1 ? Math.min(1, high + pad) : high + pad;
  return [low === 0 ? 0 : low - pad, top];
}

// Colour and dashes of a line.
function lineClass(one, index) {
  return one.run === undefined ? `k${index % 6} dash${index % 3}` : `k${one.run % 6} dash${(one.dash || 0) % 3}`;
}

// At most `most` points; each stands for neighbours by their mean, lowest and highest, so that no spike is lost.
function thinned(points, most) {
  const finite = points.filter(point => isNumber(point[1]));
  if (finite.length <= most) return finite;
  const every = Math.ceil(finite.length / most), out = [];
  for (let i = 0; i < finite.length; i += every) {
    const some = finite.slice(i, i + every);
    const mean = some.reduce((sum, point) => sum + point[1], 0) / some.length;
    out.push([some[0][0], mean, Math.min(...some.map(lowOf)), Math.max(...some.map(highOf)), some[some.length - 1][0]]);
  }
  return out;
}

const lowOf = point => (point.length > 2 ? point[2] : point[1]), highOf = point => (point.length > 2 ? point[3] : point[1]);

// How many points the running mean of a curve takes: 0 for a curve that is smooth, or too short to have a trend.
function smoothingOf(points) {
  const values = points.map(point => point[1]).filter(isNumber);
  if (values.length < 24) return 0;
  const [low, high] = extent(values);
  let travelled = 0, moves = 0;
  for (let i = 1; i < values.length; i++) { travelled += Math.abs(values[i] - values[i - 1]); moves += values[i] !== values[i - 1]; }
  // A curve that goes straight travels its own range once; and a few spikes over a level are no noise.
  if (travelled < 5 * (high - low) || moves < values.length / 3) return 0;
  return 2 * Math.max(2, Math.round(values.length / 24)) + 1;
}

// The mean over `window` neighbouring points, fewer at both ends.
function runningMean(points, window) {
  const half = (window - 1) / 2;
  return points.map(([x], i) => {
    const some = points.slice(Math.max(0, i - half), i + half + 1);
    return [x, some.reduce((sum, point) => sum + point[1], 0) / some.length];
  });
}

export function drawLines(card, chart, width) {
  const format = chart.share ? formatShare : formatNumber;
  const xDomain = extent(chart.series.flatMap(one => one.points.map(point => point[0])));
  const plot = frame(width, 170, xDomain, lineRange(chart), tickText(chart));
  stepAxis(plot, xDomain);
  const smooth = [];  // the running mean of each series, where it has one
  const middle = one => point => plot.x(point.length > 4 ? (point[0] + point[4]) / 2 : point[0] + ((one.every || 1) - 1) / 2);
  const drawn = chart.series.map(one => thinned(one.points, Math.floor((width - MARGIN.left) / 2)));
  chart.series.forEach((one, index) => {
    const at = middle(one), classes = lineClass(one, index), band = drawn[index].filter(point => point.length > 2);
    if (band.length < 2) return;
    const upper = band.map(point => `${at(point).toFixed(1)} ${plot.y(point[3]).toFixed(1)}`);
    const lower = band.map(point => `${at(point).toFixed(1)} ${plot.y(point[2]).toFixed(1)}`).reverse();
    plot.svg.append(svgEl("path", { class: `band ${classes}`, d: `M${upper.join("L")}L${lower.join("L")}Z` }));
  });
  chart.series.forEach((one, index) => {
    const at = middle(one), classes = lineClass(one, index), window = smoothingOf(one.points);
    const path = points => points.map((point, i) => `${i ? "L" : "M"}${at(point).toFixed(1)} ${plot.y(point[1]).toFixed(1)}`).join("");
    for (const part of unbroken(one, drawn[index])) {
      plot.svg.append(svgEl("path", { class: `curve ${window ? "raw " : ""}${classes}`, d: path(part) }));
    }
    if (window) {
      const share = one.points.length / Math.max(1, drawn[index].length);
      smooth[index] = runningMean(drawn[index], Math.max(3, Math.round(window / share) | 1));
      plot.svg.append(svgEl("path", { class: `curve ${classes}`, d: path(smooth[index]) }));
    }
    for (const point of one.points) {
      if (!isNumber(point[1])) plot.svg.append(svgEl("text", { class: "lost", x: plot.x(point[0]), y: 14, "text-anchor": "middle" }, "×"));
      else if (one.points.length <= 12) plot.svg.append(svgEl("circle", { class: `dot ${classes}`, cx: at(point), cy: plot.y(point[1]), r: 3.5 }));
    }
  });
  const trend = (index, step) => {
    const at = smooth[index] && smooth[index].findLast(point => point[0] <= step);
    return at ? at[1] : null;
  };
  hover(card, plot, { ...chart, trend }, format, (index, name, one) => lineClass(one, index));
  return plot.svg;
}

// The pieces of a curve between values that are not finite.
function unbroken(one, points) {
  const breaks = one.points.filter(point => !isNumber(point[1])).map(point => point[0]);
  const parts = [];
  let last = null;
  for (const point of points) {
    if (last === null || breaks.some(step => step > last && step < point[0])) parts.push([]);
    parts[parts.length - 1].push(point);
    last = point[0];
  }
  return parts;
}

export function drawStack(card, chart, width) {
  const steps = placesOf(chart);
  const lookups = chart.series.map(one => new Map(one.points));
  const values = lookups.map(at => steps.map(step => (isNumber(at.get(step)) ? at.get(step) : 0)));
  const totals = steps.map((_, i) => values.reduce((sum, row) => sum + row[i], 0));
  const top = chart.top || Math.max(extent(totals)[1] * 1.05, 1e-6);
  const xDomain = extent(steps);
  const plot = frame(width, 200, xDomain, [0, top], tickText({ share: true }));
  stepAxis(plot, xDomain);
  const lost = steps.map(step => lookups.some(at => typeof at.get(step) === "string"));
  const pieces = [];  // of steps at which everything is finite
  steps.forEach((_, i) => { if (!lost[i]) { if (i === 0 || lost[i - 1]) pieces.push([]); pieces[pieces.length - 1].push(i); } });
  const floor = steps.map(() => 0);
  // A line between areas that zigzags from step to step would cover them.
  const dense = (plot.x(xDomain[1]) - plot.x(xDomain[0])) / steps.length < 3 ? " dense" : "";
  chart.series.forEach((one, row) => {
    const edge = (step, value) => `${plot.x(step).toFixed(1)} ${plot.y(Math.min(top, value)).toFixed(1)}`;
    for (const piece of pieces) {
      // A single step has no width: it is drawn as a column.
      const places = piece.length > 1 ? piece.map(i => [steps[i], i]) : [[steps[piece[0]] - 0.2, piece[0]], [steps[piece[0]] + 0.2, piece[0]]];
      const upper = places.map(([step, i]) => edge(step, floor[i] + values[row][i]));
      const lower = places.map(([step, i]) => edge(step, floor[i])).reverse();
      plot.svg.append(svgEl("path", { class: `area r-${one.name}${dense}`, d: `M${upper.join("L")}L${lower.join("L")}Z` }));
    }
    steps.forEach((_, i) => { floor[i] += values[row][i]; });
  });
  for (const step of steps.filter((_, i) => lost[i])) {
    plot.svg.append(svgEl("text", { class: "lost", x: plot.x(step), y: 14, "text-anchor": "middle" }, "×"));
  }
  hover(card, plot, { ...chart, total: true }, formatShare, (_, name) => `r-${name}`);
  return plot.svg;
}

// Bars by place: side by side, or one upon the other where the chart is `stacked`.
export function drawBars(card, chart, width, classOf) {
  const format = chart.share ? formatShare : formatNumber;
  const value = (one, place) => (isNumber(one.values[place]) ? one.values[place] : 0);
  const sums = chart.labels.map((_, place) => chart.series.reduce((sum, one) => sum + value(one, place), 0));
  const high = chart.stacked ? extent(sums)[1] : extent(chart.series.flatMap(one => one.values))[1];
  const plot = frame(width, 150, [-0.5, chart.labels.length - 0.5], [0, high > 0 ? high * 1.05 : chart.share ? 0.01 : 1], tickText(chart));
  const slot = plot.x(1) - plot.x(0), beside = chart.stacked ? 1 : chart.series.length;
  const bar = Math.max(1, Math.min(chart.stacked ? 44 : 26, (slot * 0.7) / beside));
  chart.labels.forEach((label, place) => {
    if (slot > 22 || place % Math.ceil(22 / slot) === 0) {
      plot.svg.append(svgEl("text", { x: plot.x(place), y: plot.height - 5, "text-anchor": "middle" }, slot > 64 ? updateName(place) : String(place + 1)));
    }
    let floor = 0;
    chart.series.forEach((one, index) => {
      const classes = classOf(index, one.name, one), size = value(one, place);
      const left = plot.x(place) + (chart.stacked ? -0.5 : index - chart.series.length / 2) * bar;
      const from = chart.stacked ? floor : 0;
      if (size > 0) {
        plot.svg.append(svgEl("rect", {
          class: `bar ${classes}`, x: left + 0.5, width: Math.max(0.5, bar - 1), y: plot.y(from + size), height: plot.y(from) - plot.y(from + size),
        }));
      }
      if (typeof one.values[place] === "string") {
        plot.svg.append(svgEl("text", { class: "lost", x: left + bar / 2, y: 14, "text-anchor": "middle" }, "×"));
      }
      floor += size;
    });
  });
  plot.svg.append(svgEl("line", { class: "base", x1: MARGIN.left, x2: width - MARGIN.right, y1: plot.y(0), y2: plot.y(0) }));
  const asPoints = chart.series.map(one => ({ ...one, points: one.values.map((value, place) => [place, value]) }));
  hover(card, plot, { ...chart, series: asPoints, total: chart.stacked }, format, classOf);
  return plot.svg;
}

function placesOf(chart) {
  return [...new Set(chart.series.flatMap(one => one.points.map(point => point[0])))].sort((a, b) => a - b);
}

// A line at the nearest step and the values there.
function hover(card, plot, chart, format, classOf) {
  const lookups = chart.series.map(one => new Map(one.points.map(point => [point[0], point])));
  const every = Math.max(1, ...chart.series.map(one => one.every || 1));
  crosshair(card, plot, placesOf(chart), step => {
    const rows = chart.series.map((one, index) => [one, index]).filter(([, index]) => lookups[index].has(step));
    const lines = rows.flatMap(([one, index]) => {
      const point = lookups[index].get(step), trend = chart.trend ? chart.trend(index, step) : null;
      const range = point.length > 2 && point[3] > point[2] ? ` (${format(point[2])} to ${format(point[3])})` : "";
      const row = el("tr", "", el("td", classOf(index, one.name, one), el("i"), nameOf(one)), el("td", "", format(point[1]) + range));
      return trend === null ? [row] : [row, el("tr", "lesser", el("td", "", "running mean"), el("td", "", format(trend)))];
    });
    if (chart.total && rows.length > 1) {
      const sum = rows.reduce((all, [, index]) => all + (isNumber(lookups[index].get(step)[1]) ? lookups[index].get(step)[1] : 0), 0);
      lines.push(el("tr", "total", el("td", "", "together"), el("td", "", format(sum))));
    }
    const title = chart.labels ? chart.labels[step] : every > 1 ? `steps ${step} to ${step + every - 1}: mean` : `step ${step}`;
    return [el("b", "", title), el("table", "", ...lines)];
  });
}

const nameOf = one => one.label || words(one.name);

// What chartBox needs to know of a chart.
function chartSpec(chart, draw, classOf) {
  const format = chart.share ? formatShare : formatNumber, isLines = draw === drawLines;
  const last = one => (isLines && one.points.length ? format(one.last === undefined ? one.points[one.points.length - 1][1] : one.last) : "");
  const keys = chart.series.map((one, index) => {
    const classes = classOf(index, one.name, one);
    return isLines ? { classes: `line ${classes}`, text: `${nameOf(one)} ${last(one)}` } : { classes, text: nameOf(one) };
  });
  const single = chart.series.length === 1 && (isLines || chart.labels);
  return {
    title: chart.title, note: chart.note, keys: single && chart.series[0].run === undefined ? [] : keys,
    aside: single ? last(chart.series[0]) : "", remark: isLines ? smoothingRemark(chart) : "",
    label: `${chart.title}: ${chart.series.map(nameOf).join(", ")}. The arrow keys read its values.`,
    draw: (card, width) => draw(card, chart, width, classOf),
  };
}

function smoothingRemark(chart) {
  const windows = chart.series.map(one => smoothingOf(one.points) * (one.every || 1)).filter(window => window > 0);
  const every = Math.max(1, ...chart.series.map(one => one.every || 1));
  const parts = windows.length ? [`Strong line: mean of ${Math.max(...windows)} steps`] : [];
  if (every > 1) parts.push(`${windows.length ? "faint" : "Line"}: mean of ${every} steps`, "shade: lowest to highest of them");
  else if (windows.length) parts.push("faint: each step");
  return parts.join("; ");
}

// A chart in a card: { node, update(chart) }.
export function chartFigure(chart, draw, classOf = (index, name, one) => lineClass(one, index)) {
  const card = chartBox(chartSpec(chart, draw, classOf));
  return { node: card.node, update: next => card.update(chartSpec(next, draw, classOf)) };
}
