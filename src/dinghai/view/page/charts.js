// Small charts in SVG: lines, stacked areas, bars. Each is drawn at the width of its card and again when that changes.
import { el, keyed, makeTip, svgEl } from "./dom.js";
import { formatNumber, formatShare, isNumber, words } from "./format.js";

export const MARGIN = { left: 46, right: 10, top: 8, bottom: 20 };

export function niceTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find(factor => factor * power >= rough) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

export function frame(width, height, xDomain, yDomain, format) {
  const svg = svgEl("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  const [x0, x1] = xDomain, [y0, y1] = yDomain;
  const plotWidth = width - MARGIN.left - MARGIN.right, plotHeight = height - MARGIN.top - MARGIN.bottom;
  const x = value => MARGIN.left + (x1 === x0 ? 0.5 : (value - x0) / (x1 - x0)) * plotWidth;
  const y = value => MARGIN.top + (1 - (value - y0) / (y1 - y0)) * plotHeight;
  for (const tick of niceTicks(y0, y1, 4)) {
    svg.append(svgEl("line", { class: "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(tick), y2: y(tick) }));
    svg.append(svgEl("text", { x: MARGIN.left - 7, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
  }
  return { svg, x, y, width, height };
}

export function stepAxis(plot, xDomain) {
  const ticks = xDomain[0] === xDomain[1] ? [xDomain[0]] : niceTicks(xDomain[0], xDomain[1], 5).filter(Number.isInteger);
  for (const tick of ticks) {
    plot.svg.append(svgEl("text", { x: plot.x(tick), y: plot.height - 5, "text-anchor": "middle" }, String(tick)));
  }
}

export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (isNumber(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return low > high ? [0, 1] : [low, high];
}

// The y range of a line chart: from zero where zero is near, so that small wobbles do not look like changes.
export function lineRange(chart) {
  let [low, high] = extent(chart.series.flatMap(one => one.points.map(point => point[1])));
  if (low > 0 && low < 0.7 * high) low = 0;
  if (chart.share && low > 0 && high <= 1 && high - low > 0.25) low = 0;
  if (high === low) { const pad = Math.abs(high) * 0.1 || 0.01; high += pad; low = low === 0 ? 0 : low - pad; }
  const pad = (high - low) * 0.06;
  const top = chart.share && high <= 1 ? Math.min(1, high + pad) : high + pad;
  return [low === 0 ? 0 : low - pad, top];
}

export function drawLines(card, chart, width) {
  const format = chart.share ? formatShare : formatNumber;
  const xDomain = extent(chart.series.flatMap(one => one.points.map(point => point[0])));
  const plot = frame(width, 170, xDomain, lineRange(chart), format);
  stepAxis(plot, xDomain);
  chart.series.forEach((one, index) => {
    let path = "", open = false;
    for (const [step, value] of one.points) {
      if (isNumber(value)) path += `${open ? "L" : "M"}${plot.x(step).toFixed(1)} ${plot.y(value).toFixed(1)}`;
      else plot.svg.append(svgEl("text", { class: "lost", x: plot.x(step), y: 14, "text-anchor": "middle" }, "×"));
      open = isNumber(value);
    }
    if (path) plot.svg.append(svgEl("path", { class: `curve k${index % 6}`, d: path }));
    if (one.points.length <= 12) {
      for (const [step, value] of one.points) {
        if (isNumber(value)) plot.svg.append(svgEl("circle", { class: `dot k${index % 6}`, cx: plot.x(step), cy: plot.y(value), r: 3.5 }));
      }
    }
  });
  hover(card, plot, chart, format, index => `k${index % 6}`);
  return plot.svg;
}

export function drawStack(card, chart, width) {
  const steps = [...new Set(chart.series.flatMap(one => one.points.map(point => point[0])))].sort((a, b) => a - b);
  const values = chart.series.map(one => {
    const at = new Map(one.points);
    return steps.map(step => (isNumber(at.get(step)) ? at.get(step) : 0));
  });
  const totals = steps.map((_, i) => values.reduce((sum, row) => sum + row[i], 0));
  const top = chart.top || Math.max(extent(totals)[1] * 1.05, 1e-6);
  const xDomain = extent(steps);
  const plot = frame(width, 200, xDomain, [0, top], formatShare);
  stepAxis(plot, xDomain);
  const floor = steps.map(() => 0);
  chart.series.forEach((one, row) => {
    const edge = (step, value) => `${plot.x(step).toFixed(1)} ${plot.y(Math.min(top, value)).toFixed(1)}`;
    // A single step has no width: it is drawn as a column.
    const places = steps.length > 1 ? steps.map((step, i) => [step, i]) : [[xDomain[0] - 0.2, 0], [xDomain[0] + 0.2, 0]];
    const upper = places.map(([step, i]) => edge(step, floor[i] + values[row][i]));
    const lower = places.map(([step, i]) => edge(step, floor[i])).reverse();
    plot.svg.append(svgEl("path", { class: `area r-${one.name}`, d: `M${upper.join("L")}L${lower.join("L")}Z` }));
    steps.forEach((_, i) => { floor[i] += values[row][i]; });
  });
  hover(card, plot, chart, formatShare, (_, name) => `r-${name}`);
  return plot.svg;
}

export function drawBars(card, chart, width) {
  const format = chart.share ? formatShare : formatNumber;
  const high = extent(chart.series.flatMap(one => one.values))[1];
  const plot = frame(width, 150, [-0.5, chart.labels.length - 0.5], [0, high > 0 ? high * 1.05 : 1], format);
  const slot = plot.x(1) - plot.x(0), bar = Math.min(26, (slot * 0.7) / chart.series.length);
  chart.labels.forEach((label, place) => {
    if (slot > 16 || place % Math.ceil(16 / slot) === 0) {
      plot.svg.append(svgEl("text", { x: plot.x(place), y: plot.height - 5, "text-anchor": "middle" }, String(place)));
    }
    chart.series.forEach((one, index) => {
      const value = isNumber(one.values[place]) ? one.values[place] : 0;
      const left = plot.x(place) + (index - chart.series.length / 2) * bar;
      plot.svg.append(svgEl("rect", { class: `bar k${index}`, x: left + 0.5, width: bar - 1, y: plot.y(value), height: plot.y(0) - plot.y(value), rx: 1.5 }));
    });
  });
  plot.svg.append(svgEl("line", { class: "base", x1: MARGIN.left, x2: width - MARGIN.right, y1: plot.y(0), y2: plot.y(0) }));
  const asPoints = chart.series.map(one => ({ name: one.name, points: one.values.map((value, place) => [place, value]) }));
  hover(card, plot, { series: asPoints, labels: chart.labels }, format, index => `k${index}`);
  return plot.svg;
}

// A line at the nearest step and the values there.
export function hover(card, plot, chart, format, classOf) {
  const steps = [...new Set(chart.series.flatMap(one => one.points.map(point => point[0])))].sort((a, b) => a - b);
  const lookups = chart.series.map(one => new Map(one.points));
  const cross = svgEl("line", { class: "cross", y1: MARGIN.top, y2: plot.height - MARGIN.bottom, visibility: "hidden" });
  plot.svg.append(cross);
  plot.svg.addEventListener("pointermove", event => {
    const box = plot.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * plot.width;
    const step = steps.reduce((best, one) => (Math.abs(plot.x(one) - at) < Math.abs(plot.x(best) - at) ? one : best));
    cross.setAttribute("x1", plot.x(step));
    cross.setAttribute("x2", plot.x(step));
    cross.setAttribute("visibility", "visible");
    const rows = chart.series.map((one, index) => [one, index]).filter(([, index]) => lookups[index].has(step));
    const lines = rows.map(([one, index]) =>
      el("tr", "", el("td", classOf(index, one.name), el("i"), words(one.name)), el("td", "", format(lookups[index].get(step)))));
    const hostBox = card.node.getBoundingClientRect();
    const title = chart.labels ? chart.labels[step] : `step ${step}`;
    card.tip.show(event.clientX - hostBox.left, event.clientY - hostBox.top + 16, el("b", "", title), el("table", "", ...lines));
  });
  plot.svg.addEventListener("pointerleave", () => { cross.setAttribute("visibility", "hidden"); card.tip.hide(); });
}

export function chartCard(chart, draw, classOf) {
  const node = el("section", "card", el("h3", "", chart.title), chart.note ? el("p", "note", chart.note) : null);
  const format = chart.share ? formatShare : formatNumber;
  const last = one => (one.points ? one.points[one.points.length - 1][1] : null);
  if (chart.series.length > 1 || !chart.labels) {
    const keys = chart.series.map((one, index) =>
      keyed(classOf(index, one.name), one.points ? `${words(one.name)} ${format(last(one))}` : words(one.name)));
    node.append(el("div", "keys", ...keys));
  }
  const card = { node, tip: makeTip(node) };
  let drawn = null, width = 0;
  const redraw = () => {
    const now = Math.floor(node.clientWidth - 28);
    if (now < 60 || now === width) return;
    width = now;
    const svg = draw(card, chart, width);
    svg.setAttribute("aria-label", `${chart.title}: ${chart.series.map(one => one.name).join(", ")}`);
    if (drawn) drawn.replaceWith(svg); else node.insertBefore(svg, node.lastChild);
    drawn = svg;
  };
  // Drawing changes the card's height: outside of the observer's own round, or the browser complains of a loop.
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(node);
  return node;
}
