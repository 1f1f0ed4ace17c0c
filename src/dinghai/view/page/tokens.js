// Completions of one prompt side by side, each token in the colour of its region, marked by its effect.
import { el, makeTip, picker } from "./dom.js";
import { formatNumber, words } from "./format.js";

// The regions, those hatched in which the rule was seen to stop tokens, and the other marks that occur.
function legend(data) {
  const item = (classes, one) => el("li", "", el("span", "t " + classes, words(one.name)), el("span", "", one.meaning));
  const stopped = data.effects.findIndex(one => one.name === "stopped");
  const seen = new Set(), stoppedIn = new Set();
  for (const step of data.tokens) for (const group of step.groups) for (const sample of group.samples) {
    for (const fate of Object.values(sample.updates)) sample.text.forEach((_, row) => {
      seen.add(at(fate.effect, row));
      if (at(fate.effect, row) === stopped) stoppedIn.add(at(fate.region, row));
    });
  }
  const regions = data.regions.map((one, index) => item(`r-${one.name}${stoppedIn.has(index) ? " e-stopped" : ""}`, one));
  const plain = new Set(["kept", "none"]);
  const effects = data.effects.filter((one, index) => seen.has(index) && !plain.has(one.name)).map(one => item(`e-${one.name}`, one));
  return el("ul", "legend", ...regions, ...effects);
}

// One value of a column that is stored once where all of its values are the same.
const at = (column, index) => (Array.isArray(column) ? column[index] : column);

function tokenTip(data, text, fate, index) {
  const region = data.regions[at(fate.region, index)], effect = data.effects[at(fate.effect, index)];
  const row = (name, value) => el("tr", "", el("td", "", name), el("td", "", value));
  const meaning = el("td", "wide", region ? region.meaning : "");
  meaning.colSpan = 2;
  return [el("b", "", text), el("table", "",
    row("region", region ? words(region.name) : "unknown"), row("effect", effect ? effect.name : "unknown"), el("tr", "", meaning),
    row("ratio r = new/old", formatNumber(at(fate.ratio, index))), row("advantage A", formatNumber(at(fate.advantage, index))),
    row("gradient weight", formatNumber(at(fate.weight, index))), row("entropy, nats", formatNumber(at(fate.entropy, index))),
    row("log π new", formatNumber(at(fate.logp_new, index))), row("log π old", formatNumber(at(fate.logp_old, index))),
    row("log π sampler", formatNumber(at(fate.logp_sampler, index))))];
}

function sampleCard(data, sample, update) {
  const fate = sample.updates[update];
  const tokens = el("div", "tokens");
  const rowAt = new Map();
  if (fate) sample.text.forEach((_, row) => {
    const place = fate.place ? fate.place[row] : row;
    if (place !== undefined) rowAt.set(place, row);
  });
  sample.text.forEach((text, place) => {
    const row = rowAt.get(place);
    const region = row === undefined ? null : data.regions[at(fate.region, row)];
    const effect = row === undefined ? null : data.effects[at(fate.effect, row)];
    const colour = row === undefined ? "" : `r-${region ? region.name : "unknown"} ${effect ? "e-" + effect.name : ""}`;
    const token = el("span", "t " + colour, text || "∅");
    if (row !== undefined) token.dataset.row = row;
    token.dataset.place = place;
    tokens.append(token);
    if (text.includes("⏎")) tokens.append("\n");
  });
  const left = sample.length - sample.text.length;
  if (left > 0) tokens.append(` … ${left} more`);
  const parts = Object.entries(sample.parts);
  const head = el("p", "head", el("span", "", "reward ", el("b", "", formatNumber(sample.reward))),
    fate && !Array.isArray(fate.advantage) ? el("span", "", "A ", el("b", "", formatNumber(fate.advantage))) : null,
    ...(parts.length > 1 ? parts.map(([name, value]) => el("span", "", `${name} ${formatNumber(value)}`)) : []),
    el("span", "", `${sample.length} tokens${sample.finished ? "" : ", cut"}`),
    fate ? null : el("span", "", "not in this update"));
  const node = el("section", fate ? "sample" : "sample absent", head, tokens);
  if (sample.written !== null) node.append(el("p", "note", sample.written));
  return { node, tokens, fate, sample };
}

function countStopped(data, sample, fate) {
  const stopped = data.effects.findIndex(one => one.name === "stopped");
  return fate ? sample.text.filter((_, row) => at(fate.effect, row) === stopped).length : 0;
}

// The last step whose shown completions have a stopped token; the last one where none has.
function tellingStep(data) {
  const tells = step => step.groups.some(group => group.samples.some(sample =>
    Object.values(sample.updates).some(fate => countStopped(data, sample, fate) > 0)));
  const found = data.tokens.findLastIndex(tells);
  return found < 0 ? data.tokens.length - 1 : found;
}

export function tokenSection(data) {
  const state = { step: tellingStep(data), group: 0, update: null };
  const host = el("div", "samples"), prompt = el("pre", "prompt"), note = el("p", "lead");
  const shell = el("div", "shell");
  const tip = makeTip(shell);
  const steps = picker("step", value => { state.step = value; state.group = 0; state.update = null; show(); });
  const groups = picker("prompt", value => { state.group = value; state.update = null; show(); });
  const updates = picker("update", value => { state.update = value; show(); });

  function hoverable(card) {
    const reveal = event => {
      const token = event.target.closest("[data-row]");
      if (!token) { tip.hide(); return; }
      const box = shell.getBoundingClientRect(), spot = token.getBoundingClientRect();
      tip.show(spot.left - box.left, spot.bottom - box.top + 6,
        ...tokenTip(data, card.sample.text[Number(token.dataset.place)], card.fate, Number(token.dataset.row)));
    };
    card.tokens.addEventListener("pointerover", reveal);
    card.tokens.addEventListener("pointerdown", reveal);
    card.tokens.addEventListener("pointerleave", () => tip.hide());
  }

  // The update in which most of the group's tokens were stopped: where the clip is to be seen.
  function busiest(group) {
    const count = update => group.samples.reduce((sum, sample) =>
      sum + countStopped(data, sample, sample.updates[update]) + (sample.updates[update] ? 0.001 : 0), 0);
    return data.tokens[state.step].updates.reduce((best, one) => (count(one) > count(best) ? one : best));
  }

  function show() {
    const step = data.tokens[state.step], group = step.groups[state.group];
    if (state.update === null) state.update = busiest(group);
    steps.fill(data.tokens.map((one, index) => [index, String(one.step)]), state.step);
    groups.fill(step.groups.map((one, index) => [index, one.prompt.trim().replace(/\s+/g, " ").slice(0, 70) || one.prompt_id]), state.group);
    updates.fill(step.updates.map(one => [one, data.update_names[one] || String(one)]), state.update);
    prompt.textContent = group.prompt;
    const [recorded, total] = step.recorded;
    note.textContent = `Shown: the ${step.groups.length} prompts of the step with the most stopped tokens, ` +
      `${group.samples.length} of this prompt's ${group.size} completions. ` +
      `The trace holds ${recorded === total ? "all" : recorded + " of"} ${total} tokens of the step.`;
    const cards = group.samples.map(sample => sampleCard(data, sample, state.update));
    cards.sort((a, b) => Boolean(b.fate) - Boolean(a.fate));  // stable: the order within each stays
    cards.filter(card => card.fate).forEach(hoverable);
    host.replaceChildren(...cards.map(card => card.node));
    tip.hide();
  }
  show();
  shell.prepend(el("div", "pickers", steps.node, groups.node, updates.node), note, legend(data), prompt, host);
  return shell;
}
