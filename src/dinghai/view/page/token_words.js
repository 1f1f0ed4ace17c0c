// One sentence about a token: where it lies, and what the rule made of its gradient.
import { formatNumber, formatShare, isNumber, words } from "./format.js";

// The rules whose objective is min(r·A, clip(r)·A) itself, of which more can be said than of others.
const MIN_RULES = ["ppo", "grpo", "dual_clip", "dapo", "gspo", "gspo_token", "luspo"];
const BOUND_NAMES = { overshoot: "1+ε_high", relapse: "1+ε_high", forgotten: "1−ε_low", escaped: "1−ε_low", dual: "c" };

// Numbers of a token may be missing or not finite; where one of these is, no sentence about sizes is true.
const SIZES = ["ratio", "advantage", "weight", "weight_unclipped"];

const NEVER_SCORED = "Never scored: all advantages of its completion are 0, so it has no gradient with or without a rule, and nothing was computed for it.";

// A ratio with two digits of its distance from 1, where that is small: bounds of a completion's ratio lie at 1.0003.
export function formatRatio(value) {
  const away = isNumber(value) ? Math.abs(value - 1) : 0;
  if (away === 0 || away >= 0.01) return formatNumber(value);
  return String(Number(value.toFixed(Math.min(15, 1 - Math.floor(Math.log10(away))))));
}

// The share of a token's own gradient that was taken away. By the effect where that says it: weights are rounded.
export function removedShare({ effect, weight, weight_unclipped: unclipped }) {
  if (!isNumber(weight) || !isNumber(unclipped) || unclipped === 0) return null;
  if (effect === "kept" || effect === "amplified") return 0;
  const left = Math.max(0, weight * Math.sign(unclipped));
  return Math.max(0, Math.abs(unclipped) - left) / Math.abs(unclipped);
}

// `token`: the numbers of one token in one update, with the names of its region and effect. `rule`: RuleFacts or null.
export function fateSentence(token, region, rule) {
  const { ratio, advantage, weight, correction } = token;
  if (token.region === "masked") return "Not trained on (prompt, padding or tool output), so it has no gradient.";
  if (token.scored === false) return NEVER_SCORED;
  if (!SIZES.every(name => isNumber(token[name]))) {
    return `Not all of its numbers are finite (r ${formatRatio(ratio)}, A ${formatNumber(advantage)}, w ${formatNumber(weight)}): nothing can be said of its gradient.`;
  }
  if (token.effect === "none") {
    return weight === 0
      ? "A = 0: there is nothing to make likelier or rarer, so it has no gradient, with or without a rule." + ofKl(token)
      : `A = 0, so without the rule it would have no gradient; the rule itself gives it w = ${formatNumber(weight)}.` + ofKl(token);
  }
  if (token.region === "dropped" || correction === 0) {
    return "The correction between rollout engine and trainer leaves it out, whatever the rule says of it, and so takes its whole gradient away." + ofKl(token);
  }
  const what = MIN_RULES.includes(rule && rule.name) ? ofMin(token) : null;
  return `${place(token, region, rule)}: ${what || ofEffect(token)}.${ofKl(token)}`;
}

function place(token, region, rule) {
  const subject = `${rule && rule.ratio !== "token" ? "The completion's r" : "r"}\u00a0=\u00a0${formatRatio(token.ratio)}`;
  const sign = `A\u00a0${token.advantage > 0 ? ">" : "<"}\u00a00`;
  const bound = boundLeft(token, rule);
  if (bound !== null) {
    const name = MIN_RULES.includes(rule.name) ? `${BOUND_NAMES[token.region]}\u00a0=\u00a0` : "";
    return `${subject} is ${token.ratio > bound ? "above" : "below"} ${name}${formatRatio(bound)} and ${sign}`;
  }
  if (token.region === "inside") return rule && rule.boundaries && rule.boundaries.length ? `${subject} is within the bounds and ${sign}` : `${subject} and ${sign}`;
  return `${subject}, ${sign}, ${words(token.region)}${region ? ` (${region.meaning})` : ""}`;
}

// The bound that the token has left, of those that the rule has whatever else it looks at.
function boundLeft(token, rule) {
  if (!rule || !rule.boundaries || !(token.region in BOUND_NAMES)) return null;
  const high = ["overshoot", "relapse", "dual"].includes(token.region);
  const bound = rule.boundaries.find(one =>
    one.advantage === Math.sign(token.advantage) && (high ? one.above : one.below) === token.region);
  if (!bound || !isNumber(bound.ratio)) return null;
  return high === token.ratio >= bound.ratio ? bound.ratio : null;
}

function ofMin(token) {
  const full = unclipped(token);
  if (token.effect === "stopped") {
    if (token.region === "dual") return "the dual clip takes c·A there, a constant, whose gradient is zero";
    if (token.region === "overshoot" || token.region === "escaped") {
      return "min takes the clipped branch, a constant, whose gradient is zero";
    }
  }
  if (token.effect !== "kept") return null;
  if (token.region === "relapse") return `min takes the unclipped branch, so its gradient keeps the weight ${full}, which grows with r`;
  if (token.region === "forgotten") return `min takes the unclipped branch, so its gradient keeps the weight ${full}, which shrinks with r`;
  return `the clip leaves it alone, and its gradient has the weight ${full}`;
}

function ofEffect(token) {
  const instead = `w = ${formatNumber(token.weight)} instead of ${unclipped(token)}`;
  const times = Math.abs(token.weight / token.weight_unclipped);
  switch (token.effect) {
    case "kept": return `the rule leaves its gradient as it is, with the weight ${unclipped(token)}`;
    case "attenuated": return `the rule leaves ${formatShare(times)} of its gradient, ${instead}`;
    case "amplified": return `the rule makes its gradient ${isNumber(times) && Number.isFinite(times) ? `${formatNumber(times)} times as large` : "larger"}, ${instead}`;
    case "stopped": return `the rule takes its whole gradient away, ${instead}`;
    case "reversed": return `the rule turns its gradient round, ${instead}`;
    default: return `its weight is ${formatNumber(token.weight)}`;
  }
}

// The weight without the rule, as it comes about.
function unclipped(token) {
  const corrected = isNumber(token.correction) ? "·correction" : "";
  return `r·A${corrected} = ${formatNumber(token.weight_unclipped)}`;
}

function ofKl(token) {
  if (!isNumber(token.kl_weight) || token.kl_weight === 0) return "";
  return token.weight === 0
    ? ` But the KL penalty moves it, with the weight ${formatNumber(token.kl_weight)}.`
    : ` The KL penalty adds ${formatNumber(token.kl_weight)} to that weight.`;
}
