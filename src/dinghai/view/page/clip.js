// What the rule did to the tokens, as pictures: the map, the distribution of the ratios, and where it clips.
import { countText } from "./clip_axis.js";
import { drawMap, mapSentences, regionTable, stoppedRegions } from "./clip_map.js";
import { drawRatios, ratioSentences } from "./clip_ratio.js";
import { drawLanes, edgeText, positionRows, rangeRows, tokenSentence, tokenTable, whereSentence } from "./clip_where.js";
import { el } from "./dom.js";
import { chartBox } from "./figure.js";
import { updateName, words } from "./format.js";
import { heading } from "./overview.js";

const ALL = "all";

export async function mountClip(host, source, run) {
  const chosen = { step: ALL, update: ALL };
  const pick = pickers(chosen, source.live, () => load());
  const coverage = el("p", "lead"), views = el("div", "clipviews");
  const map = figureSlot(), regions = el("div", "card clipscroll"), ratios = figureSlot(() => scale.node), tokens = tokenCard();
  const where = { position: figureSlot(), probability: figureSlot(), reward: figureSlot() };
  const scale = scaleSwitch(() => showRatios());
  views.append(map.node, regions, ratios.node,
    el("div", "charts wide", tokens.node, where.position.node, where.probability.node, where.reward.node));
  host.replaceChildren(el("div", "clip",
    ...heading("Where the rule acts", "Each token has a ratio r = π_new/π_old and an advantage A, and so a place in the plane in which the rule decides."),
    pick.node, coverage, views));

  let facts = null, traced = null, census = null, asked = 0;

  async function load() {
    const ticket = ++asked;
    let found = null, problem = "Nothing is recorded here.";
    try {
      found = await source.census(run, chosen.step === ALL ? null : chosen.step, chosen.update === ALL ? null : chosen.update);
    } catch (error) {
      problem = String(error.message || error);
    }
    if (ticket !== asked) return;  // the reader has chosen something else meanwhile
    census = found && found.tokens ? found : null;
    views.hidden = census === null;
    coverage.textContent = census ? coverageText(census) : problem;
    if (census) showAll();
  }

  function showAll() {
    map.show({
      title: "The map", note: mapSentences(census, facts.rule, facts.regions).join(" "), label: "The map: tokens by ratio and advantage. The arrow keys read its cells.",
      draw: (card, width) => drawMap(card, { census, rule: facts.rule, regions: facts.regions }, width),
    });
    regions.replaceChildren(regionTable(census, facts.regions));
    showRatios();
    showWhere();
    tokens.show(census);
  }

  function showRatios() {
    if (!census) return;
    const stopped = stoppedRegions(census, facts.regions);
    const keys = Object.keys(census.ratio.regions).map(name => ({ classes: `r-${name}${stopped.has(name) ? " hatched" : ""}`, text: words(name) }));
    ratios.show({
      title: "How far the ratios went from 1", note: ratioSentences(census, facts.rule, singleUpdate(), takesSamplers(facts.settings)).join(" "), keys,
      label: "Distribution of the ratios, by region. The arrow keys read its columns.",
      draw: (card, width) => drawRatios(card, { census, rule: facts.rule, regions: facts.regions, linear: scale.linear() }, width),
    });
  }

  function showWhere() {
    const position = positionRows(census.by_position), probability = rangeRows(census.by_probability, "probability");
    const reward = rangeRows(census.by_reward, "mean reward");
    lanes(where.position, "By position in the completion", position, "position, counted from 0", (first, last) =>
      (position.edges[last + 1] - position.edges[first] > 1 ? `at positions ${position.edges[first]} to ${position.edges[last + 1] - 1}` : `at position ${position.edges[first]}`));
    lanes(where.probability, "By probability of the token", probability, "π_old of the token", (first, last) =>
      `on tokens whose probability was ${edgeText(probability.edges[first])} to ${edgeText(probability.edges[last + 1])}`);
    lanes(where.reward, "By reward of the prompt's completions", reward, "mean reward of the completions of the prompt", (first, last) =>
      `on prompts whose completions had a mean reward of ${edgeText(reward.edges[first])} to ${edgeText(reward.edges[last + 1])}`);
  }

  const singleUpdate = () => {
    const shown = traced.steps.filter(one => chosen.step === ALL || one.step === chosen.step);
    return shown.length && shown.every(one => one.updates.length === 1) ? "only" : chosen.update === 0 ? "first" : null;
  };

  async function refresh() {
    [facts, traced] = await Promise.all([source.overview(run), source.traced(run)]);
    // A report may hold the census of the run and no single step; a run that is live has had none yet.
    host.hidden = source.live && traced.steps.length === 0;
    pick.fill(traced.steps);
    if (!host.hidden) await load();
  }

  await refresh();
  return { refresh };
}

function lanes(slot, title, shown, axis, place) {
  slot.show({
    title, note: whereSentence(shown.rows, place), label: `${title}: tokens stopped, gradient removed, tokens. The arrow keys read its columns.`,
    draw: (card, width) => drawLanes(card, { ...shown, axis }, width),
  });
}

// A place for a figure that is made when there is something to show, and kept from then on. `above()`: what stands
// between its words and its picture.
function figureSlot(above) {
  const node = el("div", "slot");
  let card = null;
  return {
    node,
    show(spec) {
      if (card) { card.update(spec); return; }
      card = chartBox(spec);
      if (above) card.node.insertBefore(above(), card.node.lastChild);
      node.append(card.node);
    },
  };
}

const takesSamplers = settings => (settings || []).some(([name, value]) => name === "update.shortcuts.old_log_probs" && value === '"engine"');

function coverageText(census) {
  const [first, last] = census.steps, steps = first === last ? `Step ${first}` : `Steps ${first} to ${last}`;
  const read = census.sampled ? ` Read: ${census.sampled}.` : "", notes = (census.notes || []).map(note => ` ${note}`).join("");
  const unscored = census.unscored
    ? ` ${countText(census.unscored)} were never scored, since all advantages of their completion are 0: they have no ratio and no probability, and so no place in the figures of these.` : "";
  return `${steps}: ${countText(census.tokens)} tokens, each counted in every update that used it. ${countText(census.signal)} of them have a signal (A is not 0).${unscored}${read}${notes}`;
}

// Whole run or one step, all updates or one.
function pickers(chosen, live, changed) {
  const step = choice("tokens of"), update = choice("update");
  const number = value => (value === ALL ? ALL : Number(value));
  let steps = [];
  const fillUpdates = () => {
    const used = steps.filter(one => chosen.step === ALL || one.step === chosen.step).flatMap(one => one.updates);
    const updates = [...new Set(used)].sort((a, b) => a - b);
    // A report does not hold the whole run update by update.
    if (!updates.includes(chosen.update) || (chosen.step === ALL && !live)) chosen.update = ALL;
    update.fill([[ALL, "all updates"], ...updates.map(one => [one, updateName(one)])], chosen.update);
    update.node.hidden = updates.length < 2 || (chosen.step === ALL && !live);
  };
  step.select.addEventListener("change", () => { chosen.step = number(step.select.value); fillUpdates(); changed(); });
  update.select.addEventListener("change", () => { chosen.update = number(update.select.value); changed(); });
  return {
    node: el("div", "pickers", step.node, update.node),
    fill(given) {
      steps = given;
      if (chosen.step !== ALL && !steps.some(one => one.step === chosen.step)) chosen.step = ALL;
      step.fill([[ALL, "the whole run"], ...steps.map(one => [one.step, `step ${one.step}`])], chosen.step);
      fillUpdates();
    },
  };
}

// A drop-down that only grows where it can, so that one that a reader has open stays as it is.
function choice(label) {
  const select = el("select");
  let known = [];
  return {
    select, node: el("label", "", label, select),
    fill(options, value) {
      const grown = known.every(([given], place) => options[place] && options[place][0] === given);
      const added = (grown ? options.slice(known.length) : options).map(([given, text]) => {
        const option = el("option", "", text);
        option.value = given;
        return option;
      });
      if (grown) select.append(...added); else select.replaceChildren(...added);
      known = options;
      if (select.value !== String(value)) select.value = value;
    },
  };
}

function scaleSwitch(changed) {
  const box = el("input");
  box.type = "checkbox";
  box.addEventListener("change", changed);
  return { node: el("label", "scaleswitch", box, "linear scale"), linear: () => box.checked };
}

function tokenCard() {
  const lead = el("p", "note"), place = el("div", "clipscroll tall");
  place.tabIndex = 0;
  place.setAttribute("role", "region");
  place.setAttribute("aria-label", "what lost most gradient");
  return {
    node: el("section", "card", el("h3", "", "By token"), lead, place),
    show(census) {
      lead.textContent = tokenSentence(census);
      const top = place.scrollTop;
      place.replaceChildren(tokenTable(census));
      place.hidden = census.by_token.length === 0;
      place.scrollTop = top;
    },
  };
}
