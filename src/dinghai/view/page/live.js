// The live page: the views of the report for a run that still grows, and several runs laid over each other.
import { mountClip } from "./clip.js";
import { mountCompare } from "./compare.js";
import { el } from "./dom.js";
import { mountCurves, mountRegions, mountVerdict } from "./overview.js";
import { mountReplay } from "./replay.js";
import { mountSettings } from "./settings.js";
import { SECTION_NAMES, sections, themeButton } from "./shell.js";
import { listen, liveSource } from "./source.js";
import { mountTokens } from "./tokens.js";

const COMPARED_AT_MOST = 6;  // as many colours as the palette has for runs
const CHECKED_AT_FIRST = 3;  // where there are more runs than that
const LEAST_PAUSE = 1_000;  // ms between two refreshes of a view
const PAUSE_FACTOR = 10;  // a view that takes long to make is made anew less often
const QUIET = 30;  // s without a sign of life, after which it is said

const source = liveSource(), byId = id => document.getElementById(id);
const part = sections(byId("main"), byId("bar"));
// heads: the runs as the server told them at the time `heard`; picked: whose views are shown; chips: id -> its entry;
// goal: the section that the reader asked for while others are still being made
const page = { heads: [], heard: 0, picked: null, chips: new Map(), goal: null };
const headOf = id => page.heads.find(head => head.id === id);

// --- the views: made one after another, and refreshed while they are near ---

// age(): changes when the view has become old.
function view(id, mount, age) {
  const host = part(id, SECTION_NAMES[id]);
  const one = { host, entry: byId("bar").lastElementChild, mount, age, made: null, run: null, shown: null, near: false, busy: false, rests: 0, timer: null };
  new IntersectionObserver(seen => {
    one.near = seen[seen.length - 1].isIntersecting;
    bringUpToDate(one);
  }, { rootMargin: "300px 0px" }).observe(host);
  return one;
}

const version = () => headOf(page.picked).version, trace = () => headOf(page.picked).trace;
const summary = view("summary", mountVerdict, version);
const compared = view("compare", host => mountCompare(host, source, comparedRuns), () =>
  comparedRuns().map(run => `${run.id}/${run.slot}/${headOf(run.id).version}`).join(" "));
const views = [
  summary, compared,
  view("curves", mountCurves, version),
  view("regions", mountRegions, version),
  view("clip", mountClip, trace),
  view("replay", mountReplay, trace),
  view("tokens", mountTokens, trace),
  view("settings", mountSettings, version),
];

async function bringUpToDate(one) {
  const run = page.picked;
  // What is hidden is never near, and may have to show. What is further down is made once all above it is.
  const isWanted = one.near || one.host.hidden || (one.run !== run && views.slice(0, views.indexOf(one)).every(above => above.run === run));
  if (run === null || !isWanted || one.busy) return;
  const age = one.age(), isOther = one.run !== run && !(one === compared && one.made);  // that one is of all runs
  if (!isOther && one.shown === age) { one.run = run; return; }
  if (!isOther && Date.now() < one.rests) {
    clearTimeout(one.timer);
    one.timer = setTimeout(() => bringUpToDate(one), one.rests - Date.now());
    return;
  }
  one.busy = true;
  const begun = Date.now();
  try {
    if (one.made && !isOther) await one.made.refresh();
    else one.made = (await one.mount(one.host, source, run)) || { refresh() {} };
    one.shown = age;
  } catch (error) {
    // What is shown stays; where nothing is yet, the reason stands in its place until it can be.
    if (!one.made || isOther) { one.made = null; one.host.replaceChildren(el("p", "notes", error.message)); }
  }
  one.run = run;
  one.busy = false;
  one.rests = Date.now() + Math.max(LEAST_PAUSE, PAUSE_FACTOR * (Date.now() - begun));
  one.host.classList.add("drawn");
  one.entry.hidden = one.host.hidden;
  if (page.goal) page.goal.scrollIntoView({ behavior: "instant" });
  views.forEach(bringUpToDate);
}

// Where the reader wants to be: kept in sight while views above it are made, until the reader goes elsewhere.
byId("bar").addEventListener("click", event => {
  const one = views.find(view => view.entry === event.target);
  seek(one);
});
addEventListener("click", event => {
  const link = event.target instanceof Element && event.target.closest("a[data-section]");
  if (link) seek(views.find(view => view.host.id === link.dataset.section));
});
function seek(one) { page.goal = one && views.some(view => view.run !== page.picked) ? one.host : null; }
for (const kind of ["wheel", "touchmove", "keydown"]) addEventListener(kind, () => { page.goal = null; }, { passive: true });

// --- the runs ---

const comparedRuns = () => [...page.chips.values()].filter(chip => chip.box.checked && headOf(chip.id))
  .map(chip => ({ id: chip.id, name: headOf(chip.id).name, slot: chip.slot }));

function heard(heads, notes) {
  page.heads = heads;
  page.heard = Date.now();
  source.told(heads);
  byId("notes").replaceChildren(...notes.map(note => el("p", "", note)));
  byId("notes").hidden = notes.length === 0;
  const isFirst = page.chips.size === 0;
  for (const head of heads) { if (!page.chips.has(head.id)) page.chips.set(head.id, chip(head)); }
  byId("runs").append(...heads.map(head => page.chips.get(head.id).node).filter((node, place) => byId("runs").children[place + 1] !== node));
  byId("runs").hidden = heads.length < 2;
  if (isFirst) heads.slice(0, heads.length > COMPARED_AT_MOST ? CHECKED_AT_FIRST : COMPARED_AT_MOST).forEach(head => check(page.chips.get(head.id), true));
  if (!headOf(page.picked) && heads.length) pick((heads.find(head => head.name === address().get("run")) || heads[0]).id);
  showStates();
  views.forEach(bringUpToDate);
}

function chip(head) {
  const box = el("input"), name = el("button", "", head.name), state = el("small", "");
  box.type = "checkbox";
  box.setAttribute("aria-label", `Compare ${head.name}`);
  name.type = "button";
  name.title = "Show this run";
  const one = { id: head.id, box, name, state, slot: null, node: el("span", "run", box, name, state) };
  box.addEventListener("change", () => { check(one, box.checked); compared.rests = 0; views.forEach(bringUpToDate); });
  name.addEventListener("click", () => { pick(head.id); writeAddress(head.name); views.forEach(bringUpToDate); });
  return one;
}

// Gives a run a colour that no other has, or takes it back.
function check(one, isChecked) {
  if (one.slot !== null) one.node.classList.remove(`k${one.slot}`);
  one.slot = null;
  one.box.checked = isChecked;
  if (isChecked) {
    const taken = new Set([...page.chips.values()].map(other => other.slot));
    one.slot = [...Array(COMPARED_AT_MOST).keys()].find(slot => !taken.has(slot));
    one.node.classList.add(`k${one.slot}`);
  }
  const isFull = [...page.chips.values()].filter(other => other.slot !== null).length >= COMPARED_AT_MOST;
  for (const other of page.chips.values()) {
    other.box.disabled = isFull && other.slot === null;
    other.box.title = other.box.disabled ? `${COMPARED_AT_MOST} runs can be compared` : "";
  }
}

function pick(id) {
  page.picked = id;
  for (const one of page.chips.values()) {
    one.node.classList.toggle("picked", one.id === id);
    one.name.setAttribute("aria-pressed", String(one.id === id));
  }
  showStates();
}

// The run in the address, by its name: numbers are the server's and end with it. The rest of it is the tokens' view's.
const address = () => new URLSearchParams(location.hash.slice(1));

function writeAddress(name) {
  const asked = address();
  asked.set("run", name);
  history.replaceState(history.state, "", `#${asked}`);
}

// --- how far they are ---

function showStates() {
  for (const head of page.heads) {
    const one = page.chips.get(head.id);
    one.name.textContent = head.name;
    one.state.textContent = head.state === "finished" ? "finished" : stepText(head);
    one.node.dataset.state = head.state;
  }
  const head = headOf(page.picked);
  byId("name").textContent = head ? head.name : "Dinghai";
  byId("state").textContent = head ? stateText(head) : "No run yet: it appears here when it begins.";
  byId("state").dataset.state = head ? head.state : "stopped";
  document.title = head ? `${head.name} · ${stepText(head)} · Dinghai` : "Dinghai";
}

function stepText(head) {
  if (!head.steps) return "no step yet";
  return head.steps_planned ? `step ${count(head.steps)} of ${count(head.steps_planned)}` : `step ${count(head.steps)}`;
}

// Only what is known: a run that writes nothing may be dead, or at a long step.
function stateText(head) {
  if (head.note) return `${stepText(head)}; ${head.note}`;
  if (head.state === "finished") return `finished, ${count(head.steps)} steps`;
  const quiet = head.quiet === null ? null : head.quiet + (Date.now() - page.heard) / 1_000;
  if (head.state === "stopped") {
    return `no new step for ${duration(quiet)}; ${stepText(head)}. If it has died, \`dinghai resume\` goes on from its last checkpoint.`;
  }
  return `running, ${stepText(head)}${quiet > QUIET ? `; nothing new for ${duration(quiet)}` : ""}`;
}

const count = number => number.toLocaleString("en");

function duration(seconds) {
  if (seconds === null) return "some time";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5_400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3_600)} h` : `${Math.round(seconds / 86_400)} days`;
}

// --- beginning ---

if (address().has("token")) page.goal = byId("tokens");
const THEME = "dinghai-theme";
byId("link").after(themeButton({
  read() { try { return localStorage.getItem(THEME); } catch { return null; } },
  write(theme) { try { localStorage.setItem(THEME, theme); } catch { /* storage is switched off: it holds for this page */ } },
}));
setInterval(showStates, 5_000);
listen(heard,
  seconds => { byId("link").textContent = `Connection lost, trying again in ${seconds} s`; document.body.classList.add("lost"); },
  () => { byId("link").textContent = "live"; document.body.classList.remove("lost"); });
