// Which tokens of a prompt a replay decides otherwise than the run did, and in which words that is said.
import { el } from "./dom.js";
import { effectOf } from "./token_facts.js";
import { words } from "./format.js";

// kind -> symbol, what it means
export const TURNS = {
  freed: ["▲", "the run stopped it, and it would have kept gradient"],
  caught: ["▼", "it would have been stopped"],
  other: ["◆", "its gradient would have been changed in another way"],
};

// Completion -> place -> { kind, before, effect, region } of the tokens that meet another fate in an update, the region only
// where another rule draws regions; null where it cannot be told. found: { grid: [[side, kept_from, [n]]], rules: { key: [[region, effect, [n]]] } } of the tokens that may,
// n counting the tokens of the prompt's completions in that update, in their order.
export function otherFates(overview, group, update, found, choice) {
  const starts = [];
  let tokens = 0;
  if (choice.kind === "grid" ? found.grid === null : !(choice.key in found.rules)) return null;
  for (const sample of group.samples) {
    if (!(update in sample.updates)) continue;
    starts.push([tokens, sample]);
    tokens += sample.text.length;
  }
  const fates = new Map(), each = (fate, places) => places.map(n => [n, fate]);
  const wanted = choice.kind === "grid"
    ? found.grid.flatMap(([side, keptFrom, places]) => each({ effect: (side < 0 ? choice.low : choice.high) < keptFrom ? "stopped" : "kept" }, places))
    : found.rules[choice.key].flatMap(([region, effect, places]) => each({ region: overview.regions[region].name, effect: overview.effects[effect].name }, places));
  let at = 0;
  for (const [n, fate] of wanted.sort((a, b) => a[0] - b[0])) {
    while (at + 1 < starts.length && starts[at + 1][0] <= n) at += 1;
    const [start, sample] = starts[at], place = n - start, recorded = sample.updates[update];
    const before = effectOf(overview, recorded, place).name;
    if ((before === "stopped") === (fate.effect === "stopped") && (choice.kind === "grid" || before === fate.effect)) continue;
    const kind = before === "stopped" ? "freed" : fate.effect === "stopped" ? "caught" : "other";
    if (!fates.has(sample.id)) fates.set(sample.id, new Map());
    fates.get(sample.id).set(place, { ...fate, kind, before });
  }
  return fates;
}

// How many there are of each kind, with its symbol.
export function turnsText(label, fates) {
  const kinds = [...fates.values()].flatMap(places => [...places.values()].map(one => one.kind));
  const parts = Object.entries(TURNS).map(([kind, [symbol, meaning]]) => [symbol, kinds.filter(one => one === kind).length, meaning]).filter(([, count]) => count);
  if (!parts.length) return [`Replayed with ${label}: no token shown here meets another fate in this update.`];
  return [`Replayed with ${label}: `, ...parts.flatMap(([symbol, count, meaning], index) => [index ? "; " : "", el("b", "", `${symbol} ${count}`), ` ${meaning}`]), "."];
}

// One token's fate in the replay, beside that in the run.
export function replayedSentence(label, fate) {
  if (!fate) return `Replayed with ${label}: as in the run.`;
  const where = fate.region ? ` (${words(fate.region)})` : "";
  return `${TURNS[fate.kind][0]} Replayed with ${label}: ${fate.effect}${where}; in the run it was ${fate.before}.`;
}
