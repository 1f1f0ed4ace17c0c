// What the reader sets: the rule, its parameters, and the token's ratio, advantage and probability.
import { el } from "./dom.js";
import { defaultsOf, isAllowed } from "./explain_store.js";
import { percent } from "./explain_token.js";
import { domainOf } from "./explain_curves.js";

export function button(text, onClick, classes = "") {
  const node = el("button", classes, text);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}

export function mountControls(store, words) {
  const { node: ruleNode, show: showRule } = rulePicker(store, words);
  const ratio = slider("", value => store.set({ ratio: value }), value => value > 0);
  const advantage = slider(words.say("controls.advantage"), value => store.set({ advantage: value }), () => true);
  const pOld = slider(words.say("controls.probability"), value => store.set({ pOld: value }), value => value > 0 && value < 1);
  const becomes = el("p", "becomes"), own = el("div", "own"), paper = el("p", "paper"), zero = el("p", "zero");
  const back = button(words.say("controls.defaults"), () => store.set({ parameters: defaultsOf(store.state.rule) }));
  const node = el("section", "card controls", el("h3", "", words.say("controls.title")),
    ruleNode, paper, ratio.node, advantage.node, own, back, pOld.node, becomes, zero);
  let ruleShown = null, parts = [];
  return {
    node,
    show(view) {
      if (ruleShown !== view.rule) {
        ruleShown = view.rule;
        parts = view.rule.parameters.map(info => parameterPart(info, store, words));
        own.replaceChildren(...parts.map(part => part.node));
        back.hidden = !parts.length;
        ratio.rename(words.say(view.rule.ratio === "token" ? "controls.ratio" : `controls.ratio.${view.rule.ratio}`));
        paper.textContent = words.ofRegistry(view.rule.paper);
        zero.replaceChildren(`${words.say("controls.zero")} `, el("span", "", words.ofRegistry(view.rule.zero)));
      }
      showRule(view.rule);
      const [low, high] = domainOf(view);
      ratio.show(view.ratio, Math.max(low, high * 5e-3), high, view.rule.ratio === "sequence" ? 7 : 5);
      advantage.show(view.advantage, Math.min(-3, view.advantage), Math.max(3, view.advantage));
      pOld.show(view.pOld, 0.001, 0.999);
      for (const part of parts) part.show(view.parameters[part.name]);
      const shares = { old: percent(view.pOld), new: percent(view.pNew) };
      becomes.hidden = view.rule.ratio !== "token";
      becomes.textContent = words.say(view.isImpossible ? "controls.impossible" : "controls.becomes", shares);
      becomes.classList.toggle("bad", view.isImpossible);
    },
  };
}

function rulePicker(store, words) {
  const select = el("select");
  for (const rule of store.rules) {
    const option = el("option", "", `${rule.name} · ${words.ofRegistry(rule.title)}`);
    option.value = rule.name;
    select.append(option);
  }
  select.addEventListener("change", () => store.set({ rule: select.value }));
  return {
    node: el("label", "picker", words.say("controls.rule"), select),
    show(rule) { select.value = rule.name; },
  };
}

// A slider with a number field beside it. What is no number, or not allowed, is marked and not taken.
function slider(name, onValue, allows) {
  const range = el("input"), field = el("input"), label = el("span", "", name);
  range.type = "range";
  field.type = "number";
  for (const one of [range, field]) { one.step = "any"; one.setAttribute("aria-label", name); }
  range.addEventListener("input", () => onValue(tidy(Number(range.value), Number(range.max) - Number(range.min))));
  field.addEventListener("input", () => {
    const value = field.value === "" ? NaN : Number(field.value), isGood = Number.isFinite(value) && allows(value);
    field.setAttribute("aria-invalid", String(!isGood));
    if (isGood) onValue(value);
  });
  field.addEventListener("blur", () => { field.value = shown; field.setAttribute("aria-invalid", "false"); });
  let shown = 0;
  return {
    node: el("label", "slider", label, field, range),
    rename(text) {
      label.textContent = text;
      for (const one of [range, field]) one.setAttribute("aria-label", text);
    },
    show(value, low, high, digits = 5) {
      shown = Number(value.toPrecision(digits));
      range.min = Math.min(low, value);
      range.max = Math.max(high, value);
      range.value = value;
      if (document.activeElement !== field || Number(field.value) !== value) field.value = shown;
    },
  };
}

// Rounded to what a step of the slider is worth.
function tidy(value, span) {
  const step = 10 ** Math.floor(Math.log10(span / 150));
  return Number((Math.round(value / step) * step).toPrecision(10));
}

function parameterPart(info, store, words) {
  const set = value => store.set({ parameters: { [info.name]: value } });
  const one = slider(info.name, set, value => isAllowed(info, value));
  const about = el("small", "", `${words.ofRegistry(info.unit)}${words.language === "zh" ? "；" : "; "}${words.ofRegistry(info.description)}`);
  const node = el("div", "parameter", one.node, about);
  let isOn = null;
  if (info.optional) {
    isOn = el("input");
    isOn.type = "checkbox";
    isOn.addEventListener("change", () => set(isOn.checked ? info.when_on : null));
    node.prepend(el("label", "switch", isOn, words.say("controls.off", { name: info.name })));
  }
  return {
    name: info.name,
    node,
    show(value) {
      if (isOn) { isOn.checked = value !== null; one.node.hidden = value === null; }
      if (value === null) return;
      const [low, high] = info.slider;
      one.show(value, info.above === low ? low + (high - low) / 1000 : low, high);
    },
  };
}

