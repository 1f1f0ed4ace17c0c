// What the data of a prompt say: the state of each token in each update, counts, losses and changes. No elements here.
import { isNumber, words } from "./format.js";
import { valueAt } from "./token_scales.js";

const NUMBERS = ["ratio", "advantage", "weight", "weight_unclipped", "removed", "entropy", "logp_new", "logp_old", "logp_sampler", "correction", "kl_weight"];
const UNKNOWN = { name: "unknown", meaning: "this page does not know it" };

export const sumOf = values => values.reduce((total, one) => total + one, 0);

// `overview` has the lists that the numbers in `fate` point into.
export const regionOf = (overview, fate, place) => overview.regions[valueAt(fate.region, place)] || UNKNOWN;
export const effectOf = (overview, fate, place) => overview.effects[valueAt(fate.effect, place)] || UNKNOWN;

// The update that last took the completion, up to and including `update`; null where none has yet.
export function lastUpdate(sample, update) {
  const taken = Object.keys(sample.updates).map(Number).filter(one => one <= update);
  return taken.length ? Math.max(...taken) : null;
}

// The size of what a token lost; what is not a number counts most, since something is wrong there.
export const lossOf = removed => (isNumber(removed) ? removed : removed === undefined || removed === null ? 0 : Infinity);

// False for a token that the model never read, since no token of its completion has a signal.
export const isScored = (fate, place) => valueAt(fate.scored, place) !== false;

export const countUnscored = samples => sumOf(samples.map(sample =>
  sample.text.filter((_, place) => Object.values(sample.updates).some(fate => !isScored(fate, place))).length));

export function lossIn(sample, update) {
  const fate = sample.updates[update];
  if (!fate) return 0;
  return Array.isArray(fate.removed) ? sumOf(fate.removed.map(lossOf)) : lossOf(fate.removed) * sample.text.length;
}

// A token that continues a character is named by the whole of it.
function shownText(sample, place) {
  if (sample.text[place] !== "") return sample.text[place];
  if (!(place in sample.bytes)) return "∅ (no text)";
  let first = place;
  while (first > 0 && sample.text[first] === "" && first in sample.bytes) first--;
  return `${sample.text[first]} (continued)`;
}

// All that is known of one token, as update `update` found it. `lost`: by all tokens of the prompt in that update.
export function describeToken(overview, sample, place, update, lost) {
  const fate = sample.updates[update];
  const token = {
    text: shownText(sample, place), bytes: sample.bytes[place], token: sample.token[place], place, length: sample.length, sample: sample.id,
    region: regionOf(overview, fate, place).name, effect: effectOf(overview, fate, place).name,
    scored: isScored(fate, place),
  };
  for (const name of NUMBERS) if (name in fate) token[name] = valueAt(fate[name], place);
  return { ...token, shareOfRemoved: lost > 0 ? token.removed / lost : null };
}

// update -> how many tokens have each region (r-…) and effect (e-…), and in which regions tokens were stopped.
export function tallyByUpdate(overview, samples) {
  const found = new Map();
  for (const sample of samples) {
    for (const [update, fate] of Object.entries(sample.updates)) {
      if (!found.has(Number(update))) found.set(Number(update), new Map());
      const counts = found.get(Number(update)), add = key => counts.set(key, (counts.get(key) || 0) + 1);
      sample.text.forEach((_, place) => {
        const region = regionOf(overview, fate, place).name, effect = effectOf(overview, fate, place).name;
        add(`r-${region}`);
        add(`e-${effect}`);
        if (effect === "stopped") add(`stopped in ${region}`);
      });
    }
  }
  return found;
}

// The regions and effects that occur in any update, in the order of the lists.
export function occurring(overview, tallies, quiet) {
  const seen = key => [...tallies.values()].some(one => one.has(key));
  return {
    regions: [...overview.regions, UNKNOWN].filter(one => seen(`r-${one.name}`)).map(one => ({ ...one, stopped: seen(`stopped in ${one.name}`) })),
    effects: overview.effects.filter(one => seen(`e-${one.name}`) && !quiet.includes(one.name)),
  };
}

// pairs: [sample, one update, another]. How many tokens went from which region to which, the most first, in words.
export function movesBetween(overview, pairs) {
  const moved = new Map();
  for (const [sample, one, another] of pairs) {
    const [before, after] = [Math.min(one, another), Math.max(one, another)].map(update => sample.updates[update]);
    sample.text.forEach((_, place) => {
      const from = regionOf(overview, before, place).name, to = regionOf(overview, after, place).name;
      if (from !== to) moved.set(`${from} → ${to}`, (moved.get(`${from} → ${to}`) || 0) + 1);
    });
  }
  return [...moved].sort((a, b) => b[1] - a[1]).map(([path, count]) => `${words(path)} ${count}`);
}

// { sample, place, loss } of the tokens that lost gradient in an update and that `passes` leaves, the worst first.
export function worstIn(overview, samples, update, passes) {
  const found = [];
  for (const sample of samples) {
    const fate = sample.updates[update];
    if (!fate || lossIn(sample, update) === 0) continue;
    sample.text.forEach((_, place) => {
      const loss = lossOf(valueAt(fate.removed, place));
      if (loss > 0 && passes(regionOf(overview, fate, place).name, effectOf(overview, fate, place).name)) found.push({ sample, place, loss });
    });
  }
  return found.sort((a, b) => (a.loss === b.loss ? a.sample.id - b.sample.id || a.place - b.place : b.loss - a.loss));
}
