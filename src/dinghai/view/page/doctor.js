// What the doctor found: each thing that looks wrong, by which figures and where, why, and what to set.
import { el } from "./dom.js";
import { updateName } from "./format.js";
import { linkTo, placeHash, SECTION_NAMES } from "./shell.js";

// grade -> symbol, what it means; the word is the grade's name
const GRADES = {
  invalid: ["✕", "the gradient or the figures are not what they seem"],
  harmful: ["▲", "the policy gets worse, or cannot get better"],
  wasteful: ["◆", "much is computed for nothing"],
  note: ["●", "worth knowing"],
};
const CODE = /`([^`]+)`|(?<![\w./-])(--[a-z][\w.-]*|[a-z_]+(?:\.[a-z_]\w*)+)/g;

// Fills `host` with the findings as entries that open; { show(findings, settings, seen) }. `seen(place)` promises whether
// the tokens' view can show a place; `settings` are the run's rows, whose tables tell the name of a setting from a word.
export function findingList(host) {
  let shown = "", turn = 0;
  addEventListener("beforeprint", () => { for (const one of host.querySelectorAll("details")) one.open = true; });
  return {
    async show(findings, settings, seen) {
      host.hidden = findings.length === 0;
      const mine = ++turn, written = JSON.stringify(findings);
      const places = findings.flatMap(one => one.evidence.map(evidence => evidence.place));
      const isSeen = new Map(await Promise.all(places.map(async place => [place, place.step !== undefined && await seen(place)])));
      const now = written + JSON.stringify([...isSeen.values()]);
      if (mine !== turn || now === shown) return;  // what a reader has opened stays open
      const before = new Map([...host.querySelectorAll("details")].map(one => [one.dataset.check, one.open]));
      shown = now;
      const tables = new Set(settings.map(([name]) => name.split(".")[0]));
      host.replaceChildren(el("h2", "", findingsTitle(findings)),
        ...findings.map((one, index) => entry(one, before.has(one.check) ? before.get(one.check) : index === 0, tables, isSeen)));
    },
  };
}

function findingsTitle(findings) {
  const count = findings.length;
  if (findings.every(one => one.grade === "note")) return count === 1 ? "One thing is worth knowing" : `${count} things are worth knowing`;
  return count === 1 ? "One thing looks wrong" : `${count} things look wrong, the gravest first`;
}

function entry(finding, isOpen, tables, isSeen) {
  const [symbol, meaning] = GRADES[finding.grade] || ["●", ""], text = said => withCode(opened(said), tables);
  const badge = el("span", "grade", el("i", "", symbol), finding.grade);
  badge.title = meaning;
  const evidence = finding.evidence.map(one => el("li", "", ...text(one.text), ...where(one.place, finding.view, isSeen.get(one.place))));
  const item = (name, ...content) => [el("dt", "", name), el("dd", "", ...content)];
  const node = el("details", `finding g-${finding.grade}`, el("summary", "", badge, " ", el("b", "", ...text(finding.title))),
    el("dl", "",
      ...(evidence.length ? item("Evidence", el("ul", "", ...evidence)) : []),
      ...(finding.cause ? item("Cause", ...text(ended(finding.cause))) : []),
      ...(finding.fix ? item("What to do", ...text(ended(finding.fix))) : []),
      ...item("See", linkTo(finding.view, SECTION_NAMES[finding.view] || finding.view), el("small", "", `found by the check ${finding.check}`))));
  node.dataset.check = finding.check;
  node.open = isOpen;
  return node;
}

// Where a figure is seen: a link where the page can show it, else the numbers to look for it by.
function where(place, view, isSeen) {
  const said = placeText(place);
  if (!said) return [];
  const isOfTokens = place.group !== undefined || view === "tokens";
  return [" ", isSeen && isOfTokens ? linkTo("tokens", said, placeHash(place)) : el("small", "", said)];
}

// { step: 3, update: 1, group: 4, sample: 33, position: 6 } -> step 3, update 2, prompt 4, completion 33, token 7
export function placeText({ step, update, group, sample, position }) {
  const parts = [["step", step, 0], ["update", update, 1], ["prompt", group, 0], ["completion", sample, 0], ["token", position, 1]];
  return parts.filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value, first]) => (name === "update" ? updateName(value) : `${name} ${value + first}`)).join(", ");
}

const ended = text => text.replace(/\.?\s*$/, ".");

// A capital at the beginning, unless that is the name of a setting or a command.
function opened(text) {
  return /^\S*[._`]/.test(text) ? text : text.charAt(0).toUpperCase() + text.slice(1);
}

// The text with settings, options and what stands in backticks as code.
function withCode(text, tables) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(CODE)) {
    const code = match[1] || match[2];
    if (!match[1] && !code.startsWith("--") && !tables.has(code.split(".")[0])) continue;
    parts.push(text.slice(end, match.index), el("code", "", code));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}
