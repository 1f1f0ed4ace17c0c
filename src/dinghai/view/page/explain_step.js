// "Do a step": gradient ascent on one token, so that a weight of zero is felt. The policy is a toy with one logit, the
// token against all others: ∂ log π/∂ logit = 1 - π.
import { el, svgEl } from "./dom.js";
import { tokenAt, importanceWeighted } from "./explain_math.js";
import { shortFigure, percent } from "./explain_token.js";
import { button } from "./explain_controls.js";

const RATES = [0.1, 0.3, 1];
const LEAST = 1e-3; // of the axis

// The probability after one step of size `rate` with weight `weight`.
export function stepped(p, weight, rate) {
  const logit = Math.log(p) - Math.log1p(-p) + rate * weight * (1 - p);
  return 1 / (1 + Math.exp(-logit));
}

export function mountStep(store, words) {
  const said = el("p", "said"), axis = el("div", "axis"), rate = ratePicker(words);
  said.setAttribute("aria-live", "polite");
  // Where the token would be without the rule, as long as nothing but steps moves it.
  let ghost = null, isStepping = false, latest = null;
  const buttons = [[1, "once"], [10, "often"]].map(([count, name]) => button(words.say(`step.${name}`), () => go(count), "primary"));
  const restart = button(words.say("step.restart"), () => store.set({ ratio: 1, pOld: latest.pOld }));
  const node = el("section", "card step", el("h3", "", words.say("step.title")), el("p", "note", words.say("step.note")),
    el("div", "buttons", ...buttons, restart, rate.node), axis, said, el("p", "note", words.say("step.truth")));

  function go(count) {
    const before = latest, eta = rate.value();
    let p = before.pNew, free = ghost ?? p;
    for (let i = 0; i < count; i++) {
      p = stepped(p, before.at(p / before.pOld).weight, eta);
      free = stepped(free, importanceWeighted(tokenAt(free / before.pOld, before.advantage, before.pOld)), eta);
    }
    ghost = free;
    isStepping = true;
    // A token that did not move keeps its very ratio.
    store.set({ ratio: p === before.pNew || before.found.weight === 0 ? before.ratio : p / before.pOld, example: before.example });
    isStepping = false;
    const from = Math.log(before.pNew), to = Math.log(latest.pNew);
    const moved = before.found.weight === 0 ? words.say("step.still") : words.say("step.moved", {
      from: shortFigure(from), to: shortFigure(to), by: `${to >= from ? "+" : ""}${shortFigure(to - from)}`, r: shortFigure(latest.ratio) });
    const gap = words.language === "zh" ? "" : " ";
    said.textContent = `${moved}${gap}${words.say("step.without", { r: shortFigure(ghost / latest.pOld) })}`;
    drawAxis();
  }

  function drawAxis() {
    const isImpossible = latest.pNew >= 1;
    for (const one of buttons) one.disabled = isImpossible;
    const width = Math.floor(axis.clientWidth);
    if (width > 80) axis.replaceChildren(probabilityAxis(latest, isImpossible ? null : ghost, words, Math.min(width, 640)));
  }

  new ResizeObserver(() => requestAnimationFrame(() => latest && drawAxis())).observe(axis);
  return {
    node,
    show(view) {
      latest = view;
      if (isStepping) return;
      ghost = null;
      said.textContent = view.pNew >= 1 ? words.say("step.impossible") : words.say("step.ready", { w: shortFigure(view.found.weight) });
      drawAxis();
    },
  };
}

function ratePicker(words) {
  const select = el("select");
  for (const rate of RATES) { const option = el("option", "", String(rate)); option.value = rate; select.append(option); }
  select.value = RATES[1];
  return { node: el("label", "picker", words.say("step.rate"), select), value: () => Number(select.value) };
}

function probabilityAxis(view, ghost, words, width) {
  const middle = 34, least = Math.min(LEAST, view.pOld / 2, view.pNew / 2, ghost === null ? 1 : ghost / 2);
  const x = p => 20 + (1 - Math.log(Math.min(1, Math.max(p, least))) / Math.log(least)) * (width - 40);
  const svg = svgEl("svg", { class: "probability", viewBox: `0 0 ${width} 70`, width, height: 70, role: "img", "aria-label": words.say("step.axis") });
  svg.append(svgEl("line", { class: "base", x1: x(least), x2: x(1), y1: middle, y2: middle }));
  for (let p = 1; p >= least * 0.999; p /= 10) {
    svg.append(svgEl("line", { class: "base", x1: x(p), x2: x(p), y1: middle - 4, y2: middle + 4 }));
    svg.append(svgEl("text", { x: x(p), y: middle + 33, "text-anchor": "middle" }, percent(p)));
  }
  const now = Math.min(view.pNew, 1);
  svg.append(svgEl("line", { class: `moved r-${view.found.region}`, x1: x(view.pOld), x2: x(now), y1: middle, y2: middle }));
  svg.append(svgEl("circle", { class: "old", cx: x(view.pOld), cy: middle, r: 5 }),
    svgEl("text", { x: x(view.pOld), y: middle + 16, "text-anchor": "middle" }, words.say("step.old")));
  if (ghost !== null && Math.abs(x(ghost) - x(now)) > 2) {
    svg.append(svgEl("circle", { class: "ghost", cx: x(ghost), cy: middle, r: 6 }));
    const anchor = x(ghost) > width - 90 ? "end" : x(ghost) < 90 ? "start" : "middle";
    svg.append(svgEl("text", { x: x(ghost), y: middle - 24, "text-anchor": anchor }, words.say("step.ghost")));
  }
  svg.append(svgEl("circle", { class: `new r-${view.found.region}`, cx: x(now), cy: middle, r: 7 }),
    svgEl("text", { class: "strong", x: x(now), y: middle - 11, "text-anchor": "middle" }, words.say("step.now")));
  return svg;
}
