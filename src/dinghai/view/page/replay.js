// What another ε or another rule would have decided on the tokens of the run: chosen here, answered at once from sums.
import { countText } from "./clip_axis.js";
import { placeText } from "./doctor.js";
import { el } from "./dom.js";
import { chartBox } from "./figure.js";
import { formatNumber, formatShare, updateName, words } from "./format.js";
import { heading } from "./overview.js";
import { boundSlider, markButtons } from "./replay_controls.js";
import { drawBoundCurve } from "./replay_figures.js";
import { answerOf, gridSums, sumOverUpdates } from "./replay_sums.js";
import { pairTable } from "./replay_table.js";
import { linkTo, placeHash } from "./shell.js";

const GRID = "ε";  // the choice of the run's own rule at other bounds, among the rules
const SAID_AFTER = 700;  // ms after the last change, the answer is said to who does not see it
const NEAR = "400px 0px";

// Fills `host` and returns { refresh() }. In the live page the answer takes the server a second or two, so it is asked
// for when the section comes near, and again only when the reader wants it.
export async function mountReplay(host, source, run) {
  const body = el("div", "rp"), lead = "What another ε or another rule would have decided on the very tokens of this run: which it would have stopped, and how much gradient it would have taken. A replay is first-order: with it, later updates would have moved differently.";
  host.replaceChildren(...heading("Another ε or rule", lead), body);
  let shown = null, asked = false;

  async function load() {
    asked = true;
    body.classList.add("waiting");
    body.setAttribute("aria-busy", "true");
    try {
      const page = await source.replay(run);
      shown = page;
      const hadFocus = body.contains(document.activeElement);
      if (page) showReplay(body, page, source, run, () => load());
      else body.replaceChildren(el("p", "note", "There is nothing to replay: no step is recorded."));
      if (hadFocus && page) body.querySelector("select").focus({ preventScroll: true });
    } catch (error) {
      body.replaceChildren(el("p", "notes", `The run cannot be replayed: ${error.message}`));
    } finally {
      body.classList.remove("waiting");
      body.removeAttribute("aria-busy");
    }
  }

  source.replayed.set(null);
  if (!source.live) await load();
  else {
    const now = el("button", "rp-back", "Replay the tokens");
    now.type = "button";
    now.addEventListener("click", () => load());
    body.replaceChildren(now);
    body.classList.add("waiting");
    const watcher = new IntersectionObserver(seen => {
      if (asked || !seen[seen.length - 1].isIntersecting) return;
      watcher.disconnect();
      load();
    }, { rootMargin: NEAR });
    watcher.observe(host);
  }

  async function refresh() {
    const { steps } = await source.traced(run);
    host.hidden = source.live && steps.length === 0;
    if (!source.live || !asked) return;
    if (shown === null && steps.length) await load();
    const stale = body.querySelector(".rp-stale"), last = steps.length ? steps[steps.length - 1].step : 0;
    if (stale && shown) stale.hidden = last <= shown.about.steps[shown.about.steps.length - 1];
  }
  await refresh();
  return { refresh };
}

// page: as `dinghai.lens.replay_page` makes it. again(): reads the run anew.
function showReplay(host, page, source, run, again) {
  const { keys, grid } = page, ownTotal = sumOverUpdates(page.own_sums), own = answerOf(keys, ownTotal, ownTotal);
  const state = { what: grid ? GRID : page.rules[0].key, low: grid ? grid.own[0] : null, high: grid ? grid.own[1] : null };
  const byUpdate = vectors => vectors.map((vector, place) => answerOf(keys, page.own_sums[place], vector));
  const ownByUpdate = byUpdate(page.own_sums);
  const rule = () => page.rules.find(one => one.key === state.what);
  const sumsAt = (low, high) => gridSums(grid, low, high);
  const answerAt = (low, high) => answerOf(keys, ownTotal, sumOverUpdates(sumsAt(low, high)));

  // --- what is chosen -------------------------------------------------------------------------------------------------
  const choose = el("select"), status = el("p", "unseen"), told = el("p", "rp-said");
  choose.append(...[...(grid ? [[GRID, `its own rule, ${page.own.rule}, at another ε`]] : []), ...page.rules.map(one => [one.key, one.label])].map(([value, text]) => {
    const option = el("option", "", text);
    option.value = value;
    return option;
  }));
  choose.value = state.what;
  choose.addEventListener("change", () => { state.what = choose.value; update(); });
  status.setAttribute("role", "status");
  const back = el("button", "rp-back", "Back to the run's own");
  back.type = "button";
  back.addEventListener("click", () => go(...grid.own));
  const tokens = linkTo("tokens", "Token by token: see which they are");
  tokens.addEventListener("click", () => source.replayed.show(true));

  let sliders = [], marks = null, curves = [];
  const bounds = el("div", "rp-bounds"), figures = el("div", "charts wide");
  if (grid) {
    sliders = [["ε_low", grid.low, place => go(place, state.high)], ["ε_high", grid.high, place => go(state.low, place)]]
      .map(([name, values, changed]) => boundSlider(name, values, page.own.unit, changed));
    marks = markButtons(marksOf(page), places => go(...places));
    curves = [0, 1].map(() => null);
    marks.node.append(back);
    bounds.append(...sliders.map(one => one.node), marks.node);
  }
  function go(low, high) {
    Object.assign(state, { low, high });
    update();
  }

  // --- the answer -----------------------------------------------------------------------------------------------------
  const tiles = el("dl", "facts rp-facts"), byRegion = el("div", "card rp-scroll"), byIndex = el("div", "card rp-scroll"), differing = el("div", "card rp-differing");
  let timer = null;

  const label = () => (state.what !== GRID ? rule().label : `ε_low ${formatNumber(grid.low[state.low])}, ε_high ${formatNumber(grid.high[state.high])}`);
  const isOwn = () => state.what === GRID && state.low === grid.own[0] && state.high === grid.own[1];

  function update() {
    const sums = state.what === GRID ? sumsAt(state.low, state.high) : rule().sums, answer = answerOf(keys, ownTotal, sumOverUpdates(sums));
    bounds.hidden = figures.hidden = state.what !== GRID;
    if (state.what === GRID) {
      sliders[0].show(state.low);
      sliders[1].show(state.high);
      marks.show(state.low, state.high);
      back.disabled = isOwn();
      showCurves();
    }
    tiles.replaceChildren(...tilesOf(answer, own).map(([name, value, more]) => el("div", "", el("dt", "", name), el("dd", "", value, el("small", "", more)))));
    told.textContent = sentence(answer, own, label(), isOwn());
    const columns = ["Tokens stopped", "Gradient removed"], names = ["the run", label()];
    const seen = Object.keys(own.regions).filter(name => [own, answer].some(one => one.regions[name].stopped || one.regions[name].removed));
    byRegion.replaceChildren(pairTable("By region", "region", names, columns, seen.map(name => ({
      name: words(name), classes: `r-${name}`, pairs: ["stopped", "removed"].map(what => [own.regions[name][what], answer.regions[name] ? answer.regions[name][what] : 0]),
    })), seen.length ? "" : "Neither stops a token nor removes gradient."));
    byIndex.replaceChildren(pairTable("By update of the batch", "update", names, columns, byUpdate(sums).map((one, place) => ({
      name: updateName(page.about.updates[place]), pairs: [[ownByUpdate[place].stopped, one.stopped], [ownByUpdate[place].removed, one.removed]],
      more: [formatCosine(one.cosine), countText(one.differ)],
    })), "", ["cosine", "tokens that differ"]));
    showDiffering(answer);
    source.replayed.set(isOwn() ? null : { run, page, label: label(), ...(state.what === GRID ? { kind: "grid", low: state.low, high: state.high } : { kind: "rule", key: state.what }) });
    clearTimeout(timer);
    timer = setTimeout(() => { status.textContent = told.textContent; }, SAID_AFTER);
  }

  function showCurves() {
    [["ε_low", grid.low, 0], ["ε_high", grid.high, 1]].forEach(([name, values, side]) => {
      const answers = values.map((_, place) => (side ? answerAt(state.low, place) : answerAt(place, state.high)));
      const other = side ? `ε_low ${formatNumber(grid.low[state.low])}` : `ε_high ${formatNumber(grid.high[state.high])}`;
      const spec = {
        title: `Gradient removed against ${name}`, note: `In all, with ${other}. The square is at the run's own value, the dot at the chosen one.`,
        label: `Gradient removed against ${name}. The arrow keys read its values.`,
        draw: (card, width) => drawBoundCurve(card, {
          name: `${name}, ${page.own.unit}`, values, answers, at: side ? state.high : state.low, own: grid.own[side],
          marks: sideMarks(marksOf(page), side), chosen: place => (side ? go(state.low, place) : go(place, state.high)),
        }, width),
      };
      if (curves[side]) curves[side].update(spec);
      else { curves[side] = chartBox(spec); figures.append(curves[side].node); }
    });
  }

  // The tokens that are decided otherwise: how many, the first of them, and all of them in the tokens' view.
  let turn = 0;
  async function showDiffering(answer) {
    const mine = ++turn, worst = state.what === GRID ? [] : rule().disagree || [];
    const held = await Promise.all(worst.map(place => source.holds(run, place)));
    if (mine !== turn) return;
    const items = worst.map((place, index) => el("li", "", held[index] ? linkTo("tokens", placeText(place), placeHash(place)) : placeText(place)));
    for (const item of items) if (item.firstElementChild) item.firstElementChild.addEventListener("click", () => source.replayed.show(true));
    differing.replaceChildren(el("h3", "", "Where they differ"),
      el("p", "note", answer.differ ? `${countText(answer.differ)} of ${countText(answer.signal)} tokens with a signal would have met another fate. ` : "No token would have met another fate."),
      ...(items.length ? [el("p", "note", "The ones with the most gradient at stake:"), el("ul", "rp-list", ...items)] : []),
      ...(answer.differ && !isOwn() ? [el("p", "", tokens)] : []));
  }

  const stale = el("p", "rp-stale notes"), renew = el("button", "rp-back", "Replay the steps since");
  renew.type = "button";
  renew.addEventListener("click", again);
  stale.append("The run has gone on since these steps were replayed. ", renew);
  stale.hidden = true;
  host.replaceChildren(stale,
    el("div", "pickers", el("label", "", "compare the run with", choose)), bounds, told, tiles, status, figures,
    el("div", "rp-tables", byIndex, el("div", "rp-column", byRegion, differing)), el("p", "note rp-about", aboutText(page)));
  update();
}

// --- in words -------------------------------------------------------------------------------------------------------

function tilesOf(answer, own) {
  return [
    ["Tokens stopped", formatShare(answer.stopped), `the run: ${formatShare(own.stopped)}`],
    ["Gradient removed", formatShare(answer.removed), `the run: ${formatShare(own.removed)}`],
    ["Direction, cosine", formatCosine(answer.cosine), "of the two gradients, token for token, each f·w·(1−p)"],
    ["Tokens that differ", countText(answer.differ), `of ${countText(answer.signal)} with a signal`],
  ];
}

// Digits enough to tell it from 1; of the sums there are seven.
function formatCosine(value) {
  if (typeof value !== "number") return "–";
  const away = 1 - value;
  return away > 1e-6 && away < 1e-3 ? value.toFixed(1 - Math.floor(Math.log10(away))) : String(Number(value.toFixed(3)));
}

function sentence(answer, own, label, isOwn) {
  if (isOwn) return `As the run was: ${formatShare(own.stopped)} of the tokens with a signal were stopped, and ${formatShare(own.removed)} of the gradient was removed.`;
  return `With ${label}, ${formatShare(answer.stopped)} of the tokens with a signal would have been stopped instead of ${formatShare(own.stopped)}, ` +
    `and ${formatShare(answer.removed)} of the gradient removed instead of ${formatShare(own.removed)}.`;
}

function aboutText({ about, reproduced }) {
  const steps = about.steps, first = steps[0], last = steps[steps.length - 1];
  const which = steps.length === 1 ? `step ${first}` : last - first + 1 === steps.length ? `steps ${first} to ${last}` : `${steps.length} steps between ${first} and ${last}`;
  const same = reproduced ? ` Replaying the run's own settings reproduced ${countText(reproduced.equal)} of ${countText(reproduced.tokens)} recorded decisions.` : "";
  return `Read: ${which}, ${countText(about.tokens)} tokens, each counted in every update that used it.${same} ${about.note}`;
}

// --- marks ----------------------------------------------------------------------------------------------------------

// The run's own bounds first, then the papers' that lie on the grid, each with its places there.
function marksOf({ grid, own }) {
  const named = [{ name: "the run", low: own.low, high: own.high, source: "the settings of this run" }, ...grid.marks];
  return named.map(mark => ({ ...mark, places: [grid.low.indexOf(mark.low), grid.high.indexOf(mark.high)] }))
    .filter(mark => mark.places.every(place => place >= 0));
}

// Marks of one bound, those at the same value in one.
function sideMarks(marks, side) {
  const found = new Map();
  for (const { name, places } of marks) found.set(places[side], [...(found.get(places[side]) || []), name.split(/,| with /)[0]]);
  return [...found].map(([place, names]) => ({ place, name: [...new Set(names)].join(", ") }));
}
