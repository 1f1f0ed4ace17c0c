// What is true of one token, beside the numbers themselves: which sentence about its gradient, which branch of min,
// where the rule's regions end, and its formula with the numbers put in.
import { tokenAt, decide, importanceWeighted, clippedArgument, RULE_MATH } from "./explain_math.js";

const NUDGE = 1e-6; // relative step of r, by which a constant is told from a value that moves

// At most six significant digits, with a true minus.
export function figure(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-4 || size >= 1e6 ? value.toExponential(2) : String(Number(value.toPrecision(6)));
  return text.replaceAll("-", "−");
}

// Shorter, for labels: four digits, and ratios near 1 in as many as tell them from 1.
export function shortFigure(value) {
  if (value === 0) return "0";
  const size = Math.abs(value), digits = size > 0.9 && size < 1.1 ? 5 : 3;
  return figure(Number(value.toPrecision(digits)));
}

export const threeDigits = value => figure(Number(value.toPrecision(3)));

// A number of this rule: that of a sequence differs from 1 in its last digits.
export const fairFigure = (value, rule) => (rule.ratio === "sequence" ? figure(value) : figure(Number(value.toPrecision(4))));

export const percent = share => `${figure(Number((100 * share).toPrecision(share > 0.1 ? 3 : 2)))}%`;

// The state and all that follows from it. A state has rule (its description), parameters, ratio, advantage, pOld.
export function derive(state) {
  const math = RULE_MATH[state.rule.name], q = state.parameters;
  const at = ratio => decide(math, tokenAt(ratio, state.advantage, state.pOld), q);
  const x = tokenAt(state.ratio, state.advantage, state.pOld), found = decide(math, x, q);
  const pNew = state.ratio * state.pOld;
  return {
    ...state, math, q, x, found, at, pNew,
    isImpossible: state.rule.ratio === "token" && pNew > 1,
    gradient: gradientKind(state.rule, at, state, found),
    clip: clipCase(math, q, x, found),
  };
}

function gradientKind(rule, at, { ratio, advantage }, found) {
  if (advantage === 0) return found.weight !== 0 ? "pulled" : "no_signal";
  const isFlat = [1 - NUDGE, 1 + NUDGE].every(
    factor => Math.abs(at(ratio * factor).value - found.value) <= 1e-12 * Math.max(1, Math.abs(found.value)));
  if (found.weight === 0) return isFlat ? "flat" : rule.holds_constant ? "held" : "turning";
  if (isFlat) return "restored";
  return found.weight > 0 ? "up" : "down";
}

// Both arguments of min and which is taken; null for a rule of another form.
function clipCase(math, q, x, found) {
  if (!math.bounds) return null;
  const bounds = math.bounds(q, x), last = math.last(q);
  const unclipped = importanceWeighted(x), clipped = clippedArgument(x, bounds);
  const taken = found.region === "dual" ? "takes_dual" : x.advantage === 0 ? "zero"
    : unclipped === clipped ? "equal" : unclipped < clipped ? "takes_unclipped" : "takes_clipped";
  return { ...bounds, last, unclipped, clipped, dual: found.region === "dual" ? last * x.advantage : null, taken };
}

// Ratios at which the region changes, between low and high (absolute ratios), ascending, to the last digits.
export function boundariesOf(at, low, high) {
  const found = [], count = 400, start = Math.log(low), step = (Math.log(high) - start) / count;
  let before = at(low).region;
  for (let i = 1; i <= count; i++) {
    const here = at(Math.exp(start + i * step)).region;
    if (here !== before) found.push(bisect(at, Math.exp(start + (i - 1) * step), Math.exp(start + i * step), before));
    before = here;
  }
  return found;
}

function bisect(at, low, high, regionBelow) {
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (at(middle).region === regionBelow) low = middle; else high = middle;
  }
  return (low + high) / 2;
}

// --- formulas ---------------------------------------------------------------------------------------------------------

// The formula of the case that the token is in; see catalogue/formulas.py.
export function formulaFor(cases, view) {
  const { effect, region } = view.found;
  const names = [effect === "stopped" ? "stopped" : "", region, view.advantage > 0 ? "good" : "bad", "any"];
  return cases[names.find(name => Object.hasOwn(cases, name))];
}

function symbolsOf(view) {
  const found = { ...view.q };
  for (const name of Object.keys(found)) {
    if (!name.endsWith("_pos")) continue;
    const stem = name.slice(0, -"_pos".length);
    found[stem] = view.advantage > 0 ? found[name] : found[`${stem}_neg`];
  }
  if (view.clip) Object.assign(found, { lower: view.clip.lower, upper: view.clip.upper });
  return { ...found, r: view.ratio, A: view.advantage, π_new: view.pNew };
}

// The formula with each symbol replaced by its number; negative ones in parentheses.
export function putIn(formula, view) {
  const numbers = symbolsOf(view);
  const filled = formula.replace(/[\p{L}_][\p{L}\p{N}_]*/gu, name => {
    const value = Object.hasOwn(numbers, name) ? numbers[name] : null;
    if (value === null) return name;
    return value < 0 ? `(${figure(value)})` : figure(value);
  });
  return filled.replaceAll("|(", "|").replaceAll(")|", "|").replaceAll("-", "−");
}
