// Token by token: the completions of one prompt side by side, each token in the colour of what became of it.
import { el, makeTip } from "./dom.js";
import { formatNumber, isNumber, updateName, words } from "./format.js";
import { heading } from "./overview.js";
import { replayMarks } from "./replay_marks.js";
import { fillHead, makeCard, paintCard, placeInNextLine } from "./token_cards.js";
import { button, dropDown, filterLegend, promptTable, stepper, updateSlider } from "./token_controls.js";
import { countUnscored, describeToken, effectOf, isScored, lastUpdate, lossIn, lossOf, movesBetween, occurring, regionOf, sumOf, tallyByUpdate, worstIn } from "./token_facts.js";
import { fillPanel } from "./token_panel.js";
import { COLOURINGS, firstColouring, makeScale, valueAt } from "./token_scales.js";
import { formatRatio } from "./token_words.js";

const ORDERS = { lost: "gradient lost", reward: "reward", sampled: "as sampled" };
const BEFORE = "before";  // compare each completion with the update that took it before
const QUIET_EFFECTS = ["kept", "none"];
const ADDRESS_KEYS = ["step", "group", "update", "sample", "token"];
const LEAD = "Every token of a prompt's completions and what became of its gradient. Point at a token for its numbers, or press Tab and the arrow keys; [ and ] go through the updates of the batch, n to the next token that lost most.";

// Fills `host` and returns { refresh() }, which keeps the reader's place.
export function mountTokens(host, source, run) {
  const state = { step: null, group: null, update: null, updateChosen: false, colour: "region", compare: null, order: "lost", only: new Set(), sample: null, token: null };
  let overview = null, traced = { steps: [], notes: [] }, info = null, heads = [], group = null, loads = 0;
  let cards = [], scale = null, tallies = null, passes = () => true, lost = new Map(), worstFirst = [];  // of the prompt, made when needed and kept

  // --- the elements -------------------------------------------------------------------------------------------------
  const steps = stepper("step", value => openStep(value));
  const newest = button("", "", () => openStep(newestStep()), "plain");
  const updates = updateSlider(value => { state.update = value; state.updateChosen = true; repaint(); });
  const colours = dropDown("colour by", value => { state.colour = value; recolour(); });
  const compare = dropDown("compare with", value => { state.compare = value === BEFORE ? value : value === "" ? null : Number(value); repaint(); });
  const orders = dropDown("order", value => { state.order = value; arrange(); });
  const replayed = replayMarks(source, run, () => { if (group) repaint(); });
  const worst = button("Next worst", "the token that lost the next most gradient, key n", () => nextWorst());
  const prompts = promptTable(value => openGroup(value));
  const legend = filterLegend(key => { if (!state.only.delete(key)) state.only.add(key); repaint(); });
  const scaleLegend = el("ul", "scale"), changes = el("p", "changes"), note = el("p", "note"), trouble = el("div", "notes");
  const prompt = el("pre", "prompt"), samples = el("div", "samples"), said = el("p", "unseen");
  const numbers = el("div", ""), panel = el("div", "tk-panel", button("×", "close the numbers", () => choose(null, null), "close"), numbers);
  const body = el("div", "tk-body", samples, panel), tip = makeTip(body);
  const bar = el("div", "pickers", steps.node, newest, updates.node, colours.node, compare.node, orders.node, replayed.node, worst);
  const shell = el("div", "shell tk", bar, trouble, prompts.node, note, legend.node, scaleLegend, changes, replayed.note, prompt, body, said);
  said.setAttribute("role", "status");
  panel.setAttribute("role", "region");
  panel.setAttribute("aria-label", "numbers of the token");
  const view = {
    look, weigh, hover,
    select(card, place) { choose(card, place); reveal(card, place); card.text.focus({ preventScroll: true }); },
    leave() { tip.hide(); showNumbers(); },
  };

  // --- loading ------------------------------------------------------------------------------------------------------
  const newestStep = () => traced.steps[traced.steps.length - 1].step;

  function complain(...sentences) {
    trouble.replaceChildren(...sentences.map(one => el("p", "", one)));
    trouble.hidden = sentences.length === 0;
  }

  // What an earlier load brings after a later one began is thrown away.
  async function loading(what, work) {
    const mine = ++loads;
    shell.setAttribute("aria-busy", "true");
    try {
      const found = await work();
      return mine === loads ? found : null;
    } catch (error) {
      if (mine === loads) complain(`${what} cannot be shown: ${error.message}`);
      return null;
    } finally {
      if (mine === loads) shell.removeAttribute("aria-busy");
    }
  }

  async function openStep(step, wanted = {}) {
    const found = await loading(`Step ${step}`, async () => {
      const all = await source.groups(run, step);
      if (!all.length) throw new Error("none of its prompts is recorded");
      const first = all.some(head => head.group === wanted.group) ? wanted.group : all[0].group;
      return { all, one: await source.group(run, step, first) };
    });
    if (!found) return;
    state.step = step;
    info = traced.steps.find(one => one.step === step);
    heads = found.all;
    showGroup(found.one, wanted);
  }

  async function openGroup(number) {
    const found = await loading("The prompt", () => source.group(run, state.step, number));
    if (found) showGroup(found, {});
  }

  function showGroup(found, wanted) {
    group = found;
    Object.assign(state, { group: found.group, sample: null, token: null });
    tallies = tallyByUpdate(overview, group.samples);
    lost = new Map(info.updates.map(update => [update, sumOf(group.samples.map(sample => lossIn(sample, update)))]));
    if (info.updates.includes(wanted.update)) Object.assign(state, { update: wanted.update, updateChosen: true });
    else if (!state.updateChosen || !info.updates.includes(state.update)) state.update = busiestUpdate();
    if (state.compare !== BEFORE && !info.updates.includes(state.compare)) state.compare = null;
    complain();
    tip.hide();
    cards = group.samples.map(sample => makeCard(sample, view));
    prompt.textContent = group.prompt;
    prompt.hidden = group.prompt.trim() === heads.find(head => head.group === group.group).prompt;
    arrange();
    recolour();
    prompts.reveal();
    const card = cardOf(wanted.sample);
    if (card && wanted.token < card.nodes.length) {
      choose(card, wanted.token);
      reveal(card, wanted.token);
      if (wanted.isLinked) card.text.focus({ preventScroll: true });
    }
  }

  // The update in which the prompt lost most gradient: where the rule is to be seen. Where none did, the last one.
  function busiestUpdate() {
    return info.updates.reduce((best, one) => (lost.get(one) >= lost.get(best) ? one : best));
  }

  // --- all tokens ---------------------------------------------------------------------------------------------------
  const cardOf = id => cards.find(card => card.sample.id === id) || null;
  const updateInBatch = update => overview.update_names[update] || updateName(update);
  const isChosen = (sample, place) => sample.id === state.sample && place === state.token;

  function arrange() {
    const reward = sample => (isNumber(sample.reward) ? sample.reward : -Infinity);
    const asGiven = new Map(group.samples.map((sample, place) => [sample.id, place]));
    const keys = { lost: () => 0, reward: sample => -reward(sample), sampled: sample => sample.id }[state.order];
    cards.sort((a, b) => keys(a.sample) - keys(b.sample) || asGiven.get(a.sample.id) - asGiven.get(b.sample.id));
    samples.replaceChildren(...cards.map(card => card.node));
    orders.fill(Object.entries(ORDERS), state.order);
  }

  function recolour() {
    scale = state.colour === "region" ? null : makeScale(state.colour, group, overview.rule);
    scaleLegend.hidden = scale === null;
    if (scale) scaleLegend.replaceChildren(el("li", "title", scale.title), ...scale.legend.map(([classes, text]) => el("li", "t " + classes, text)));
    repaint();
  }

  function repaint() {
    shell.classList.toggle("comparing", state.compare !== null);
    shell.classList.toggle("scaled", scale !== null);
    passes = makeFilter();
    replayed.take(overview, group, state.step, state.update);
    worstFirst = replayed.differing(group, state.update) || worstIn(overview, group.samples, state.update, passes);
    for (const card of cards) {
      card.update = lastUpdate(card.sample, state.update);
      card.other = otherUpdate(card);
      card.node.classList.toggle("absent", card.update !== state.update);
      paintCard(card, view);
      fillHead(card, headFacts(card));
      card.text.setAttribute("aria-label", `completion ${card.sample.id}, reward ${formatNumber(card.sample.reward)}, ${card.nodes.length} tokens`);
    }
    fillControls();
    fillLegend();
    fillChanges();
    showNumbers();
    writeAddress();
  }

  // The update whose state a completion is compared with; null where there is no other one.
  function otherUpdate(card) {
    if (state.compare === null || card.update === null) return null;
    const other = lastUpdate(card.sample, state.compare === BEFORE ? card.update - 1 : state.compare);
    return other === card.update ? null : other;
  }

  // The classes of a token: its colour, the mark of its effect, whether the filter leaves it, and how it compares.
  function look(card, place) {
    const { sample, update, other } = card;
    const kind = sample.text[place] !== "" ? "" : place in sample.bytes ? " more" : " nothing";
    const chosen = isChosen(sample, place) ? " chosen" : "";
    if (update === null) return `t untaken${kind}${chosen}`;
    const fate = sample.updates[update], region = regionOf(overview, fate, place), effect = effectOf(overview, fate, place);
    let classes = `t ${scale ? scale.classOf(fate, place) : `r-${region.name}`}${kind}${chosen}${replayed.classOf(card, place)}`;
    if (!QUIET_EFFECTS.includes(effect.name)) classes += ` e-${effect.name}`;
    if (!passes(region.name, effect.name)) classes += " off";
    if (other === null) return classes;
    const before = sample.updates[other];
    const moved = regionOf(overview, before, place) !== region || effectOf(overview, before, place) !== effect;
    return `${classes} o-${regionOf(overview, before, place).name}${moved ? " moved" : ""}`;
  }

  // Among regions and among effects one match is enough; where both are asked for, both must match.
  function makeFilter() {
    const asked = kind => new Set([...state.only].filter(key => key.startsWith(kind)).map(key => key.slice(kind.length)));
    const regions = asked("r-"), effects = asked("e-");
    return (region, effect) => (!regions.size || regions.has(region)) && (!effects.size || effects.has(effect));
  }

  // How telling a token is, among those that share a column of the strip.
  function weigh(card, place) {
    if (card.update === null) return 0;
    if (replayed.classOf(card, place)) return Infinity;
    const fate = card.sample.updates[card.update];
    if (!passes(regionOf(overview, fate, place).name, effectOf(overview, fate, place).name)) return -1;
    if (!scale) return lossOf(valueAt(fate.removed, place)) + (regionOf(overview, fate, place).name === "inside" ? 0 : 1e-9);
    const value = valueAt(fate[COLOURINGS[state.colour].column], place);
    if (value === null) return 0;
    return isNumber(value) ? Math.abs(COLOURINGS[state.colour].logarithmic ? Math.log(value) : value) : Infinity;
  }

  // --- what stands around them --------------------------------------------------------------------------------------
  function headFacts({ sample, update, nodes }) {
    if (update === null) return [["not in an update yet", ""]];
    const fate = sample.updates[update], facts = [];
    if (!Array.isArray(fate.advantage)) facts.push(["A", formatNumber(fate.advantage)]);
    const stopped = nodes.filter((_, place) => effectOf(overview, fate, place).name === "stopped").length;
    if (stopped) facts.push(["stopped", String(stopped)]);
    if (nodes.length && nodes.every((_, place) => !isScored(fate, place))) facts.push(["never scored", ""]);
    if (update !== state.update) facts.push([updateName(update), ""]);
    return facts;
  }

  function fillControls() {
    steps.fill(traced.steps.map(one => [one.step, String(one.step)]), state.step);
    newest.hidden = !source.live || state.step === newestStep();
    newest.textContent = `newest: ${newestStep()}`;
    updates.fill(info.updates, state.update, updateInBatch(state.update));
    colours.fill(Object.entries(COLOURINGS).map(([name, one]) => [name, one.label]), state.colour);
    compare.fill([["", "nothing"], [BEFORE, "its update before"], ...info.updates.map(one => [String(one), updateName(one)])], state.compare === null ? "" : String(state.compare));
    compare.node.hidden = info.updates.length < 2;
    prompts.fill(heads, state.group);
    const [recorded, total] = info.tokens, parts = [];
    if (group.samples.length < group.size) parts.push(`${group.samples.length} of this prompt's ${group.size} completions are shown.`);
    if (heads.length < info.groups) parts.push(`${heads.length} of the step's ${info.groups} recorded prompts are shown.`);
    if (recorded < total) parts.push(`The trace holds ${recorded} of the step's ${total} tokens.`);
    const unscored = countUnscored(group.samples);
    if (unscored) parts.push(`${unscored} tokens of these completions were never scored: all advantages of their completion are 0, so nothing was computed for them.`);
    if (cards.some(card => card.update !== state.update)) parts.push("Faded completions are not in this update: they are as the one before that took them found them.");
    note.textContent = [...parts, ...traced.notes].join(" ");
  }

  // What occurs in the prompt in any update keeps its place, and is counted in the update that is shown.
  function fillLegend() {
    const counts = tallies.get(state.update) || new Map(), { regions, effects } = occurring(overview, tallies, QUIET_EFFECTS);
    const entry = (key, classes, one) => ({ key, classes, name: one.name, meaning: one.meaning, count: counts.get(key) || 0, on: state.only.has(key) });
    legend.fill([
      ...regions.map(one => entry(`r-${one.name}`, scale ? "" : `r-${one.name}${one.stopped ? " e-stopped" : ""}`, one)),
      ...effects.map(one => entry(`e-${one.name}`, `e-${one.name}`, one)),
    ]);
    fillWorst();
  }

  function fillChanges() {
    changes.hidden = state.compare === null;
    if (state.compare === null) return;
    const moves = movesBetween(overview, cards.filter(card => card.other !== null).map(card => [card.sample, card.update, card.other]));
    changes.textContent = `From the earlier to the later update: ${moves.join(", ") || "no token changed its region"}. ` +
      "Tokens that changed are framed; the line under a token has its colour in the update to compare with.";
  }

  // --- one token ----------------------------------------------------------------------------------------------------
  const describe = (card, place, update) => describeToken(overview, card.sample, place, update, lost.get(update));

  function showNumbers(card = cardOf(state.sample), place = state.token) {
    panel.classList.toggle("empty", !card);
    if (!card) { numbers.replaceChildren(el("p", "tk-hint", "The numbers of a token stand here.")); return; }
    if (card.update === null) { numbers.replaceChildren(el("p", "tk-hint", "No update has taken this completion yet.")); return; }
    const compared = [card.update, card.other].filter(update => update !== null);
    const data = { ...overview, corrected: "correction" in card.sample.updates[card.update] };
    fillPanel(numbers, data, compared.map(update => describe(card, place, update)), compared.map(updateName));
    const otherwise = replayed.sentence(card, place);
    if (otherwise) numbers.querySelector(".tk-sentence").after(el("p", "tk-replayed", otherwise));
  }

  function hover(card, place) {
    if (card.update === null) { tip.hide(); return; }
    const box = body.getBoundingClientRect(), spot = card.nodes[place].getBoundingClientRect();
    const token = describe(card, place, card.update);
    tip.show(spot.left - box.left, spot.bottom - box.top + 6, el("b", "", token.text), el("div", "", `${words(token.region)}, ${token.scored ? token.effect : "never scored"}`),
      el("div", "", `r ${formatRatio(token.ratio)}  A ${formatNumber(token.advantage)}  w ${formatNumber(token.weight)}`));
    showNumbers(card, place);
  }

  // Choosing a token; null for none.
  function choose(card, place) {
    const before = cardOf(state.sample), old = state.token;
    Object.assign(state, { sample: card ? card.sample.id : null, token: place });
    for (const [one, at] of [[before, old], [card, place]]) {
      if (!one) continue;
      const chosen = one === card && at === place, node = one.nodes[at];
      node.className = one.looks[at] = look(one, at);
      node.id = chosen ? "tk-chosen" : "";
      node.setAttribute("aria-selected", String(chosen));
      if (chosen) one.text.setAttribute("aria-activedescendant", "tk-chosen");
      else one.text.removeAttribute("aria-activedescendant");
      if (one.strip) one.strip.select(chosen ? at : null);
    }
    tip.hide();
    showNumbers();
    fillWorst();
    writeAddress();
    if (!card || card.update === null) return;
    const token = describe(card, place, card.update);
    said.textContent = `${token.text}: ${words(token.region)}, ${token.scored ? token.effect : "never scored"}, r ${formatRatio(token.ratio)}, A ${formatNumber(token.advantage)}, w ${formatNumber(token.weight)}`;
    if (replayed.sentence(card, place)) said.textContent += `. ${replayed.sentence(card, place)}`;
  }

  function reveal(card, place) {
    card.nodes[place].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  const placeInWorst = () => worstFirst.findIndex(one => isChosen(one.sample, one.place));

  function fillWorst() {
    const at = placeInWorst(), count = worstFirst.length;
    worst.disabled = count === 0;
    const name = replayed.isOn() ? "Next different" : "Next worst";
    worst.textContent = at < 0 ? `${name} (${count})` : `${name} (${at + 1} of ${count})`;
  }

  function nextWorst() {
    if (!worstFirst.length) return;
    const { sample, place } = worstFirst[(placeInWorst() + 1) % worstFirst.length];
    view.select(cardOf(sample.id), place);
  }

  // --- keys ---------------------------------------------------------------------------------------------------------
  shell.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || group === null) return;
    if (event.key === "[") updates.go(-1);
    else if (event.key === "]") updates.go(1);
    else if (event.key === "n" && !event.target.matches("select")) nextWorst();
    else if (event.key === "Escape") choose(null, null);
    else if (!moveBy(event)) return;
    event.preventDefault();
  });

  function moveBy(event) {
    const card = cards.find(one => one.text === event.target);
    if (!card || !card.nodes.length) return false;
    const place = card.sample.id === state.sample ? state.token : null, last = card.nodes.length - 1;
    const from = action => () => (place === null ? 0 : action());
    const to = {
      ArrowRight: from(() => Math.min(last, place + 1)),
      ArrowLeft: from(() => Math.max(0, place - 1)),
      ArrowDown: from(() => placeInNextLine(card.nodes, place, true)),
      ArrowUp: from(() => placeInNextLine(card.nodes, place, false)),
      Home: () => 0,
      End: () => last,
    }[event.key];
    if (!to) return false;
    const found = to();
    if (found !== null && found !== place) { choose(card, found); reveal(card, found); }
    return true;
  }

  // Coming to a completion by Tab shows the numbers of its first token; a click has chosen one already.
  samples.addEventListener("focusin", event => {
    const card = cards.find(one => one.text === event.target);
    if (card && card.nodes.length && card.sample.id !== state.sample && event.target.matches(":focus-visible")) choose(card, 0);
  });

  // --- the address --------------------------------------------------------------------------------------------------
  function readAddress(hash = location.hash) {
    const asked = new URLSearchParams(hash.slice(1));
    return Object.fromEntries(ADDRESS_KEYS.filter(key => /^\d{1,12}$/.test(asked.get(key) || "")).map(key => [key, Number(asked.get(key))]));
  }

  // In the live page alone: a report's address stays what it is.
  function writeAddress() {
    if (!source.live) return;
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const key of ADDRESS_KEYS) {
      if (state[key] === null) asked.delete(key);
      else asked.set(key, String(state[key]));
    }
    history.replaceState(history.state, "", `#${asked}`);
  }

  // By the event: what is painted meanwhile writes the address that is left.
  function followAddress(event) {
    if (!shell.isConnected) { removeEventListener("hashchange", followAddress); return; }
    const wanted = readAddress(new URL(event.newURL).hash);
    if (traced.steps.some(one => one.step === wanted.step)) openStep(wanted.step, { ...wanted, isLinked: true });
  }
  addEventListener("hashchange", followAddress);

  // --- the run ------------------------------------------------------------------------------------------------------
  // The step that is shown first: the one asked for, else where most is to be seen. A live page shows the newest.
  async function firstStep(wanted) {
    if (traced.steps.some(one => one.step === wanted.step)) return wanted.step;
    if (source.live) return newestStep();
    const stopped = await Promise.all(traced.steps.map(async one => sumOf((await source.groups(run, one.step)).map(head => head.stopped))));
    return traced.steps[stopped.lastIndexOf(Math.max(...stopped))].step;
  }

  async function refresh() {
    [overview, traced] = await Promise.all([source.overview(run), source.traced(run)]);
    if (!traced.steps.length && group === null) {
      host.replaceChildren(...heading("Token by token", traced.notes.join(" ") || "No step is recorded token by token yet."));
    } else if (group === null) {
      host.replaceChildren(...heading("Token by token", LEAD), shell);
      const wanted = readAddress();
      state.colour = firstColouring(overview.rule);
      await openStep(await firstStep(wanted), wanted);
    } else {
      const found = traced.steps.find(one => one.step === state.step);
      if (found) info = found;
      complain(...(found ? [] : [`Step ${state.step} is no longer recorded; what is shown was read before.`]));
      if (traced.steps.length) fillControls();
    }
  }
  return refresh().then(() => ({ refresh }));
}
