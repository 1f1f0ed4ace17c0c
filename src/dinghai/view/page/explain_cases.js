// The six cases as buttons, laid out as the plane they divide: the sign of A one way, the ratio the other.
import { el } from "./dom.js";
import { threeDigits } from "./explain_token.js";
import { inContext } from "./explain_verdict.js";

const WHERE = { forgotten: "below", escaped: "below", inside: "within", overshoot: "above", relapse: "above", dual: "far" };

export function mountCases(data, store, words) {
  const buttons = new Map(data.recorded.examples.map(example => [example.region, caseButton(example, data.recorded, store, words)]));
  const signs = ["good", "bad"].map(sign => el("p", `sign ${sign}`, words.say(`cases.${sign}`)));
  const node = el("section", "", el("h2", "", words.say("cases.title")), el("p", "lead", words.say("cases.note")),
    el("div", "cases", ...signs, ...buttons.values()));
  return {
    node,
    show(view) {
      for (const [region, button] of buttons) {
        button.setAttribute("aria-pressed", String(view.example !== null && view.example.region === region));
        button.classList.toggle("here", view.found.region === region);
      }
    },
  };
}

function caseButton(example, recorded, store, words) {
  const { region } = example;
  const node = el("button", `case r-${region} at-${region}`,
    el("span", "name", words.region(region), el("small", "", words.say(`cases.${WHERE[region]}`))),
    el("span", "who", words.say(`who.${region}`)),
    el("span", "text", ...inContext(example)),
    el("span", "numbers", `r = ${threeDigits(example.ratio)} · A = ${threeDigits(example.advantage)} · w = ${threeDigits(example.weight)}`));
  node.type = "button";
  node.addEventListener("click", () => store.set({
    rule: recorded.rule, parameters: recorded.parameters, fresh: true,
    ratio: example.ratio, advantage: example.advantage, pOld: example.p_old, example }));
  return node;
}
