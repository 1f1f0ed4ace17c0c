// What happened in the run and what the clip did: facts and curves.
import { chartCard, drawBars, drawLines, drawStack } from "./charts.js";
import { el } from "./dom.js";

const byPlace = index => `k${index % 6}`, byRegion = (_, name) => `r-${name}`;

function cards(charts, draw, classOf, wide) {
  return el("div", wide ? "charts wide" : "charts", ...charts.map(chart => chartCard(chart, draw, classOf)));
}

export function section(title, lead, ...content) {
  return el("section", "part", el("h2", "", title), lead ? el("p", "lead", lead) : "", ...content);
}

export function factList(facts) {
  return facts.map(([name, value, more]) => el("div", "", el("dt", "", name), el("dd", "", value, more ? el("small", "", more) : null)));
}

export async function mountOverview(host, source, run) {
  const data = await source.overview(run);
  const parts = [];
  if (data.curves.length) parts.push(section("What happened", "", cards(data.curves, drawLines, byPlace)));
  if (data.regions_over_time.length) {
    parts.push(section("What the clip did", "Where each token's ratio stood when it was updated, and where gradient was taken away.",
      cards(data.regions_over_time, drawStack, byRegion)));
  }
  if (data.by_update.length) {
    parts.push(section("Within a batch", "The first update of a batch has r = 1, so what bounds the ratio can only act later. Means over the run, by update index.",
      cards(data.by_update, drawBars, byPlace, true)));
  }
  host.replaceChildren(...parts);
}
