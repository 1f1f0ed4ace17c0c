// Several runs laid over each other: the same curves in one chart, colour for the run; and in which settings they differ.
import { chartFigure, drawLines } from "./charts.js";
import { el, keyed } from "./dom.js";
import { heading } from "./overview.js";

const REMOVED = "Gradient removed by region";
const OWN = new Set(["run.name", "run.folder"]);  // settings in which runs always differ

// chosen() -> [{ id, name, slot }], the runs that are compared; `slot` is the place of the run's colour.
export function mountCompare(host, source, chosen) {
  const facts = el("div", "scroll"), charts = el("div", "charts"), settings = el("div", "scroll");
  const differ = el("h3", "", "Settings that differ"), same = el("p", "lead");
  const problem = el("p", "notes");
  host.replaceChildren(...heading("Runs compared", "Each run has the colour of its box at the top of the page, where runs are chosen."), problem, facts, charts, differ, same, settings);
  const cards = new Map();

  async function refresh() {
    const runs = chosen();
    host.hidden = runs.length < 2;
    if (host.hidden) return;
    const answers = await Promise.all(runs.map(run => source.overview(run.id).then(data => ({ run, data }), error => ({ run, error }))));
    const known = answers.filter(one => one.data), failed = answers.filter(one => one.error);
    problem.textContent = failed.map(one => `${one.run.name}: ${one.error.message}`).join(" ");
    problem.hidden = failed.length === 0;
    facts.replaceChildren(table(known, factRows(known)));
    show(overlaid(known));
    const rows = settingRows(known);
    same.textContent = rows.length ? "" : "None: the runs have the same settings.";
    same.hidden = rows.length > 0;
    settings.replaceChildren(...(rows.length ? [table(known, rows)] : []));
  }

  function show(wanted) {
    for (const [key, card] of cards) {
      if (!wanted.some(chart => chart.key === key)) { card.node.remove(); cards.delete(key); }
    }
    wanted.forEach((chart, place) => {
      if (cards.has(chart.key)) { cards.get(chart.key).update(chart); return; }
      const card = chartFigure(chart, drawLines);
      cards.set(chart.key, card);
      charts.insertBefore(card.node, charts.children[place] || null);
    });
  }

  return refresh().then(() => ({ refresh }));
}

// A chart for each curve that any of the runs has, in their order: of several runs, more than one curve is too many.
export function overlaid(known) {
  const charts = new Map();
  for (const { run, data } of known) {
    const place = data.curves.findIndex(chart => chart.title.startsWith("Stopped")) + 1;
    for (const chart of [...data.curves.slice(0, place), ...removedInAll(data), ...data.curves.slice(place)]) {
      for (const one of chart.series) {
        const title = titleOf(chart, one), note = one.note || chart.note;
        const key = `${title}: ${note}`;  // estimates of other kinds have other notes
        if (!charts.has(key)) charts.set(key, { key, title, note, share: chart.share, series: [] });
        charts.get(key).series.push({ ...one, run: run.slot, label: run.name });
      }
    }
  }
  return [...charts.values()];
}

// "Stopped" of "Stopped, and outside the band"; "Time: rollout" of "Time".
function titleOf(chart, one) {
  if (chart.series.length === 1) return chart.title;
  const isNamed = chart.title.toLowerCase().includes(one.name.toLowerCase());
  return isNamed ? one.name[0].toUpperCase() + one.name.slice(1) : `${chart.title}: ${one.name}`;
}

// The regions' shares of the gradient removed, added up to one curve.
function removedInAll(data) {
  const chart = data.regions_over_time.find(one => one.title === REMOVED);
  if (!chart) return [];
  const sums = new Map();
  for (const one of chart.series) {
    for (const [step, value] of one.points) {
      const sum = sums.get(step) || 0;
      sums.set(step, typeof value === "number" && typeof sum === "number" ? sum + value : "NaN");
    }
  }
  const points = [...sums].sort((a, b) => a[0] - b[0]);
  const every = Math.max(1, ...chart.series.map(one => one.every || 1));
  return [{ title: "Gradient removed", note: "share of the gradient that all tokens would have had", share: true,
    series: [{ name: "removed", points, every }] }];
}

function factRows(known) {
  const names = [...new Set(known.flatMap(({ data }) => data.facts.map(fact => fact[0])))];
  return names.map(name => [name, known.map(({ data }) => (data.facts.find(fact => fact[0] === name) || ["", "–"])[1])]);
}

export function settingRows(known) {
  const tables = known.map(({ data }) => new Map(data.settings));
  const names = [...new Set(tables.flatMap(one => [...one.keys()]))].filter(name => !OWN.has(name));
  return names.map(name => [name, tables.map(one => (one.has(name) ? one.get(name) : "–"))])
    .filter(([, values]) => new Set(values).size > 1);
}

function table(known, rows) {
  const head = el("tr", "", el("th"), ...known.map(({ run }) => {
    const cell = el("th", "");
    cell.scope = "col";
    cell.append(keyed(`line k${run.slot % 6}`, run.name));
    return cell;
  }));
  return el("table", "compared", el("thead", "", head), el("tbody", "", ...rows.map(([name, values]) => {
    const first = el("th", "", name);
    first.scope = "row";
    return el("tr", "", first, ...values.map(value => el("td", "", value)));
  })));
}
