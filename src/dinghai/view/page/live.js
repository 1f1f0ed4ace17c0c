// The live page: the views of the report for a run that still grows, and several runs laid over each other.
import { mountClip } from "./clip.js";
import { mountCompare } from "./compare.js";
import { el } from "./dom.js";
import { mountCurves, mountRegions, mountVerdict } from "./overview.js";
import { mountSettings } from "./settings.js";
import { sections, themeButton } from "./shell.js";
import { listen, liveSource } from "./source.js";
import { mountTokens } from "./tokens.js";

const COMPARED_AT_MOST = 6;  // as many colours as the palette has for runs
const CHECKED_AT_FIRST = 3;  // where there are more runs than that
const LEAST_PAUSE = 1_000;  // ms between two refreshes of a view
const PAUSE_FACTOR = 10;  // a view that takes long to make is made anew less often
const QUIET = 30;  // s without a sign of life, after which it is said

const source = liveSource(), byId = id => document.getElementById(id);
const part = sections(byId("main"), byId("bar"));
// heads: the runs as the server told them at the time `heard`; picked: whose views are shown; chips: id -> its entry
const page = { heads: [], heard: 0, picked: null, chips: new Map() };
const headOf = id => page.heads.find(head => head.id === id);

// --- the views: made when they come near, and refreshed while they are ---

// age(): changes when the view has become old.
function view(id, name, mount, age) {
  const host = part(id, name);
  const one = { host, entry: byId("bar").lastElementChild, mount, age, made: null, run: null, shown: null, near: false, busy: false, rests: 0, timer: null };
  new IntersectionObserver(seen => {
    one.near = seen[seen.length - 1].isIntersecting;
    bringUpToDate(one);
  }, { rootMargin: "300px 0px" }).observe(host);
  return one;
}

const version = () => headOf(page.picked).version, trace = () => headOf(page.picked).trace;
const views = [
  view("summary", "Summary", mountVerdict, version),
  view("compare", "Runs compared", host => mountCompare(host, source, comparedRuns), () =>
    comparedRuns().map(run => `${run.id}/${run.slot}/${headOf(run.id).version}`).join(" ")),
  view("curves", "Curves", mountCurves, version),
  view("regions", "What the rule did", mountRegions, version),
  view("clip", "Where the rule acts", mountClip, trace),
  view("tokens", "Token by token", mountTokens, trace),
  view("settings", "Settings", mountSettings, version),
];

async function bringUpToDate(one) {
  const run = page.picked, isNear = one.near || one.host.hidden;  // what is hidden is never near, and may have to show
  if (run === null || !isNear || one.busy) return;
  const age = one.age(), isOther = one.run !== run;
  if (!isOther && one.shown === age) return;
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
  one.host.classList.add("made");
  one.entry.hidden = one.host.hidden;
  bringUpToDate(one);
}

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
  if (!headOf(page.picked) && heads.length) pick(heads[0].id);
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
  box.addEventListener("change", () => { check(one, box.checked); views.forEach(bringUpToDate); });
  name.addEventListener("click", () => { pick(head.id); views.forEach(bringUpToDate); });
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

const THEME = "dinghai-theme";
byId("bar").after(themeButton({
  read() { try { return localStorage.getItem(THEME); } catch { return null; } },
  write(theme) { try { localStorage.setItem(THEME, theme); } catch { /* storage is switched off: it holds for this page */ } },
}));
setInterval(showStates, 5_000);
listen(heard,
  seconds => { byId("link").textContent = `Connection lost, trying again in ${seconds} s`; document.body.classList.add("lost"); },
  () => { byId("link").textContent = "live"; document.body.classList.remove("lost"); });
