// What happened in the run and what the rule did: verdict, facts, curves, regions.
import { chartFigure, drawBars, drawLines, drawStack } from "./charts.js";
import { findingList } from "./doctor.js";
import { el } from "./dom.js";
import { words } from "./format.js";

const CURVES_LEAD = "The figure beside a name is the last one. Where a curve is noisy, the strong line is its running mean " +
  "and the faint one what was measured.";
const LONG = 150;  // steps: about as many points as a card has room for
const BAND = " A band reaches from the lowest to the highest of steps that are drawn as one point.";

const byRegion = (_, name) => `r-${name}`;

export function heading(title, lead) {
  return [el("h2", "", title), lead ? el("p", "lead", lead) : ""];
}

// Cards of charts, of which one whose title is there already is drawn anew in its place.
function gallery(draw, classOf, classes) {
  const node = el("div", classes), cards = new Map();
  return {
    node,
    show(charts) {
      for (const [title, card] of cards) {
        if (!charts.some(chart => chart.title === title)) { card.node.remove(); cards.delete(title); }
      }
      charts.forEach((chart, place) => {
        if (cards.has(chart.title)) { cards.get(chart.title).update(chart); return; }
        const card = chartFigure(chart, draw(chart), classOf(chart));
        cards.set(chart.title, card);
        node.insertBefore(card.node, node.children[place] || null);
      });
    },
  };
}

export function mountVerdict(host, source, run) {
  const verdict = el("div", "verdict"), found = el("div", "findings"), facts = el("dl", "facts"), notes = el("div", "notes");
  const findings = findingList(found);
  host.replaceChildren(verdict, found, facts, notes);
  const refresh = async () => {
    const data = await source.overview(run);
    const told = new Set(data.findings.map(one => one.sentence));  // each of these is an entry with more to it
    verdict.replaceChildren(...data.verdict.filter(sentence => !told.has(sentence)).map(sentence => el("p", "", sentence)));
    await findings.show(data.findings, data.settings, place => source.holds(run, place));
    facts.replaceChildren(...data.facts.map(([name, value, more]) =>
      el("div", "", el("dt", "", name), el("dd", "", value, more ? el("small", "", more) : null))));
    notes.replaceChildren(...data.notes.map(note => el("p", "", note)));
    notes.hidden = data.notes.length === 0;
  };
  return refresh().then(() => ({ refresh }));
}

export function mountCurves(host, source, run) {
  const curves = gallery(() => drawLines, () => undefined, "charts");
  const lead = el("p", "lead");
  host.replaceChildren(...heading("Curves"), lead, curves.node);
  const refresh = async () => {
    const data = await source.overview(run);
    const lost = data.curves.some(chart => chart.series.some(one => one.points.some(point => typeof point[1] === "string")));
    const isLong = data.curves.some(chart => chart.series.some(one => one.points.length > LONG));
    lead.textContent = `${CURVES_LEAD}${isLong ? BAND : ""}${lost ? " × marks what is not finite." : ""}`;
    curves.show(data.curves);
    host.hidden = data.curves.length === 0;
  };
  return refresh().then(() => ({ refresh }));
}

export function mountRegions(host, source, run) {
  const overTime = gallery(() => drawStack, () => byRegion, "charts");
  const byUpdate = gallery(() => drawBars, chart => (chart.stacked ? byRegion : undefined), "charts wide");
  const batchLead = el("p", "lead"), batch = el("div", "batch", el("h3", "", "Within a batch"), batchLead, byUpdate.node);
  const rule = el("p", "rule");
  host.replaceChildren(...heading("What the rule did", "Where each token's ratio stood when it was updated, and where gradient was taken away."),
    rule, overTime.node, batch);
  const refresh = async () => {
    const data = await source.overview(run);
    rule.hidden = data.rule === null;
    if (data.rule) rule.replaceChildren(...ruleText(data.rule));
    overTime.show(data.regions_over_time);
    byUpdate.show(data.by_update);
    const updates = Object.keys(data.update_names).length;
    batchLead.textContent = batchText(updates, data.by_update.length > 0);
    batch.hidden = updates === 0;
    host.hidden = data.regions_over_time.length === 0 && batch.hidden;
  };
  return refresh().then(() => ({ refresh }));
}

function batchText(updates, acted) {
  if (updates === 1) return "Each batch got one update: every ratio is 1, so a bound on it can never act.";
  if (!acted) return `In none of the ${updates} updates of a batch did a token leave the band or lose gradient.`;
  return "The first update of a batch has r = 1, so what bounds the ratio can only act later. Means over the run, by the update's index.";
}

// What the rule is, as the program that trained with it said.
function ruleText(rule) {
  const parameters = Object.entries(rule.parameters).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value}`);
  const ratio = rule.ratio === "token" ? "each token's own ratio" : `the ratio of the ${words(rule.ratio)}`;
  const from = rule.paper ? ` (${rule.paper})` : "";
  return [
    el("b", "", rule.title || rule.name), `${from} with ${parameters.length ? parameters.join(", ") : "no parameters"}, on ${ratio}, reduced by ${rule.reduction}. `,
    ...(rule.formula ? ["Weight of a token's gradient: ", el("code", "", rule.formula), ". "] : []),
    ...(rule.zero ? ["Zero: ", el("code", "", rule.zero), "."] : []),
  ];
}
