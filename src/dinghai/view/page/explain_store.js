// What the reader has set, and who wants to know of it.
import { RULE_MATH } from "./explain_math.js";

export const DEFAULT_P_OLD = 0.2;

// A state that parts of the page read and change. `set` takes any of rule (a name), parameters, ratio, advantage, pOld
// and example; a new rule begins with its own parameters unless some are given.
export function makeStore(rules, start) {
  const byName = new Map(rules.filter(rule => Object.hasOwn(RULE_MATH, rule.name)).map(rule => [rule.name, rule]));
  const listeners = [];
  let state = { rule: byName.get("ppo"), parameters: {}, ratio: 1.43, advantage: 1, pOld: DEFAULT_P_OLD, example: null, reach: 0 };
  const store = {
    get state() { return state; },
    rules: [...byName.values()],
    ruleNamed: name => byName.get(name),
    onChange(listener) { listeners.push(listener); },
    forget() { listeners.length = 0; },
    // Sets what an address or a command line asks for.
    begin(given) { if (given) store.set(cleaned(given, byName)); },
    set(change) {
      const rule = change.rule === undefined ? state.rule : byName.get(change.rule) || state.rule;
      const isNew = rule !== state.rule || change.fresh;
      const before = isNew ? defaultsOf(rule) : state.parameters;
      const next = { ...state, ...change, rule, parameters: { ...before, ...change.parameters } };
      if (isNew && change.ratio === undefined) next.ratio = ratioOfScale(rule, state.rule, state.ratio);
      next.example = change.example || null;
      // How far the axis reaches: it grows with the ratio, and shrinks only when something else is set.
      next.reach = isNew || change.parameters || change.example ? next.ratio : Math.max(state.reach, next.ratio);
      delete next.fresh;
      state = next;
      for (const listener of listeners) listener(state);
    },
  };
  store.set({ fresh: true, ratio: 1.43, advantage: 1 });
  store.begin(start);
  return store;
}

export const defaultsOf = rule => Object.fromEntries(rule.parameters.map(info => [info.name, info.default]));

// A ratio of a token means nothing to a rule of sequence means, whose bounds are hundreds of times nearer to 1.
function ratioOfScale(rule, before, ratio) {
  if ((rule.ratio === "sequence") === (before.ratio === "sequence")) return ratio;
  return rule.ratio === "sequence" ? 1.0006 : 1.43;
}

export function isAllowed(info, value) {
  if (value === null) return info.optional;
  if (!Number.isFinite(value)) return false;
  if (info.at_least !== null ? value < info.at_least : info.above !== null && value <= info.above) return false;
  return info.at_most === null || value <= info.at_most;
}

// What came from outside (the address, the command line), as far as it makes sense.
function cleaned(given, byName) {
  const change = { fresh: true }, rule = byName.get(given.rule) || byName.get("ppo");
  change.rule = rule.name;
  const allowed = rule.parameters.filter(info =>
    given.parameters && Object.hasOwn(given.parameters, info.name) && isAllowed(info, given.parameters[info.name]));
  change.parameters = Object.fromEntries(allowed.map(info => [info.name, given.parameters[info.name]]));
  if (Number.isFinite(given.ratio) && given.ratio > 0) change.ratio = given.ratio;
  if (Number.isFinite(given.advantage)) change.advantage = given.advantage;
  if (given.p_old > 0 && given.p_old < 1) change.pOld = given.p_old;
  return change;
}

// The state as `#rule=dapo&r=1.43&A=1&p=0.2&eps_high=0.28`, parameters only where they are not the rule's own.
export function asAddress(state) {
  const parts = new URLSearchParams({ rule: state.rule.name, r: state.ratio, A: state.advantage, p: state.pOld });
  for (const info of state.rule.parameters) {
    const value = state.parameters[info.name];
    if (value !== info.default) parts.set(info.name, value === null ? "none" : value);
  }
  return `#${parts}`;
}

export function fromAddress(address) {
  const parts = new URLSearchParams(address.replace(/^#/, ""));
  if (!parts.has("rule")) return null;
  const number = name => (parts.get(name) === "none" ? null : parts.has(name) && parts.get(name) !== "" ? Number(parts.get(name)) : NaN);
  const others = [...parts.keys()].filter(name => !["rule", "r", "A", "p"].includes(name));
  return {
    rule: parts.get("rule"), ratio: number("r"), advantage: number("A"), p_old: number("p"),
    parameters: Object.fromEntries(others.map(name => [name, number(name)])),
  };
}
