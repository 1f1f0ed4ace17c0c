// What each rule makes of one token: value J, gradient weight w and region, as functions of the ratio, the advantage
// and the token's probability. A second writing of the Python registry for the browser; a test compares the two at
// thousands of points. Rules that need the rest of the sequence or minibatch are not here.

// A token `x`: ratio r and its log, advantage A, and log-probs of the token, all before the step.
export function tokenAt(ratio, advantage, probability) {
  const logRatio = Math.log(ratio), logpOld = Math.log(probability);
  return { ratio, logRatio, advantage, logpOld, logpNew: logpOld + logRatio };
}

// The decision of a rule about a token: `math` of RULE_MATH, `q` its parameters by name (null: switched off).
export function decide(math, x, q) {
  const weight = math.weight(x, q), unclipped = importanceWeighted(x);
  return { value: math.value(x, q), weight, unclipped, region: math.region(x, q), effect: effectOf(weight, unclipped, x) };
}

export function importanceWeighted(x) {
  return x.advantage === 0 ? 0 : x.ratio * x.advantage;
}

function effectOf(weight, unclipped, x) {
  if (x.advantage === 0) return "none";
  if (weight === 0) return "stopped";
  if (Math.sign(weight) * Math.sign(unclipped) < 0) return "reversed";
  if (Math.abs(weight) > Math.abs(unclipped)) return "amplified";
  return Math.abs(weight) < Math.abs(unclipped) ? "attenuated" : "kept";
}

// torch's clamp: the upper bound wins where the two cross.
const clampTo = (value, low, high) => Math.min(Math.max(value, low), high);

function regionOf(x, low, high) {
  if (x.advantage === 0) return "no_signal";
  if (high) return x.advantage > 0 ? "overshoot" : "relapse";
  if (low) return x.advantage > 0 ? "forgotten" : "escaped";
  return "inside";
}

// Beyond the bound that the advantage pushes towards: what a clip stops.
const pushedOut = (x, low, high) => (high && x.advantage > 0) || (low && x.advantage < 0);

// The score-function form w·log π with w held constant.
const score = (weight, x) => (weight === 0 ? 0 : weight * x.logpNew);

const bySign = (x, positive, negative) => (x.advantage > 0 ? positive : negative);

const noBounds = x => regionOf(x, false, false);

// --- PPO's clip, with two bounds given as absolute ratios --------------------------------------------------------------

export function clippedArgument(x, bounds) {
  return x.advantage === 0 ? 0 : clampTo(x.ratio, bounds.lower, bounds.upper) * x.advantage;
}

const band = q => ({ lower: 1 - q.eps_low, upper: 1 + q.eps_high });

const beyond = (x, bounds) => [x.ratio < bounds.lower, x.ratio > bounds.upper];

function bandValue(x, bounds) {
  return Math.min(importanceWeighted(x), clippedArgument(x, bounds));
}

function bandWeight(x, bounds) {
  return pushedOut(x, ...beyond(x, bounds)) ? 0 : importanceWeighted(x);
}

// `bounds(q, x)` gives the band, `last(q)` the ratio from which on bad tokens are stopped too (null: none).
function clipRule(bounds, last) {
  const isBeyondLast = (x, q) => x.advantage < 0 && last(q) !== null && x.ratio > last(q);
  return {
    bounds,
    last,
    value: (x, q) => (isBeyondLast(x, q) ? last(q) * x.advantage : bandValue(x, bounds(q, x))),
    weight: (x, q) => (isBeyondLast(x, q) ? 0 : bandWeight(x, bounds(q, x))),
    region: (x, q) => (isBeyondLast(x, q) ? "dual" : regionOf(x, ...beyond(x, bounds(q, x)))),
  };
}

const clip = clipRule(band, q => q.dual_clip);

// Bounds that depend on π_old(token). A rounded log-prob may say that a token was certain; bounds divide by 1 - p_old.
function priorRule(boundsOf) {
  const bounds = (q, x) => {
    const { lower, upper } = boundsOf(q, clampTo(x.logpOld, -700, -1e-16));
    return { lower, upper: Math.min(upper, q.cap) };
  };
  return clipRule(bounds, q => q.cap);
}

function dcpoBounds(q, logpOld) {
  const p = Math.exp(logpOld);
  return {
    lower: 0.5 + 0.5 * Math.sqrt(Math.max(1 - (4 * q.eps_low) / p, 0)),
    upper: 0.5 + 0.5 * Math.sqrt(1 + (4 * q.eps_high) / p),
  };
}

// 1 ∓ width, as far as probabilities go: r in [0, 1/p_old].
const around = (width, logpOld) => ({ lower: Math.max(1 - width, 0), upper: Math.min(1 + width, Math.exp(-logpOld)) });

const variationBounds = (q, logpOld) => around(q.delta / Math.exp(logpOld), logpOld);

const chiSquareBounds = (q, logpOld) =>
  around(Math.sqrt((q.delta * -Math.expm1(logpOld)) / Math.exp(logpOld)), logpOld);

function klBounds(q, logpOld) {
  if (q.delta === Infinity) return { lower: 0, upper: Math.exp(-logpOld) };
  const p = Math.exp(logpOld), [low, high] = klRoots(logpOld, q.delta);
  return { lower: Math.min(low / p, 1), upper: Math.max(high / p, 1) };
}

const softplus = z => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
const sigmoid = z => 1 / (1 + Math.exp(-z));

// The two probabilities q with KL(Bernoulli(p) || Bernoulli(q)) = δ, by Newton's method in the logit of q, begun
// beyond the roots of a convex function, so that it never passes them.
function klRoots(logpOld, delta) {
  const p = Math.exp(logpOld), rest = -Math.expm1(logpOld);
  const entropy = -p * logpOld - rest * Math.log(rest);
  let low = -(delta + entropy) / p, high = (delta + entropy) / rest;
  const excess = z => softplus(z) - p * z - entropy - delta;
  for (let i = 0; i < 30; i++) {
    low -= excess(low) / (sigmoid(low) - p);
    high -= excess(high) / (rest - sigmoid(-high));
  }
  return [sigmoid(low), sigmoid(high)];
}

// --- Rules that bound the weight and keep the gradient -------------------------------------------------------------------

// `weight(x, q)` is held constant in the value.
const scoreRule = (weight, region) => ({ value: (x, q) => score(weight(x, q), x), weight, region });

const cispo = scoreRule(
  (x, q) => (x.advantage === 0 ? 0 : clampTo(x.ratio, q.floor, q.cap) * x.advantage),
  (x, q) => regionOf(x, x.ratio < q.floor, x.ratio > q.cap),
);

const dispoBand = (x, q) =>
  bySign(x, [1 - q.eps_low_pos, 1 + q.eps_high_pos], [1 - q.eps_low_neg, 1 + q.eps_high_neg]);

const dispo = scoreRule(
  (x, q) => (x.advantage === 0 ? 0 : clampTo(x.ratio, ...dispoBand(x, q)) * x.advantage),
  (x, q) => { const [low, high] = dispoBand(x, q); return regionOf(x, x.ratio < low, x.ratio > high); },
);

const topr = scoreRule(x => (x.advantage < 0 ? Math.min(x.ratio, 1) : 1) * x.advantage, noBounds);

const reinforce = scoreRule(x => x.advantage, noBounds);

const importanceSampling = { value: importanceWeighted, weight: importanceWeighted, region: noBounds };

// --- Rules that decide as PPO's clip and make something else of the tokens beyond it --------------------------------------

const bandRegion = (x, q) => regionOf(x, ...beyond(x, band(q)));

// What PPO's clip would stop: [escaped, overshoot].
function stoppedByClip(x, q) {
  const [low, high] = beyond(x, band(q));
  return [low && x.advantage < 0, high && x.advantage > 0];
}

function ceGppoWeight(x, q) {
  const [low, high] = stoppedByClip(x, q);
  if (low) return q.beta_1 * band(q).lower * x.advantage;
  return high ? q.beta_2 * band(q).upper * x.advantage : importanceWeighted(x);
}

const ceGppo = { value: ceGppoWeight, weight: ceGppoWeight, region: bandRegion };

const ppoRb = {
  value(x, q) {
    const [low, high] = stoppedByClip(x, q);
    if (!low && !high) return importanceWeighted(x);
    return ((1 + q.alpha) * (low ? band(q).lower : band(q).upper) - q.alpha * x.ratio) * x.advantage;
  },
  weight(x, q) {
    const [low, high] = stoppedByClip(x, q);
    return low || high ? -q.alpha * importanceWeighted(x) : importanceWeighted(x);
  },
  region: bandRegion,
};

function aspoWeight(x, q) {
  const [low, high] = stoppedByClip(x, q);
  if (low || high || x.advantage === 0) return 0;
  return Math.min(bySign(x, 1 / x.ratio, x.ratio), q.cap) * x.advantage;
}

const aspo = scoreRule(aspoWeight, bandRegion);

// --- Rules that bound a divergence ------------------------------------------------------------------------------------------

// KL of the token against all others. 1e-8 keeps a p that rounds to 1 from having moved infinitely far.
function binaryKL(x) {
  const p = Math.exp(x.logpOld), rest = -Math.expm1(x.logpOld);
  return p * (x.logpOld - x.logpNew) + rest * Math.log((rest + 1e-8) / (-Math.expm1(x.logpNew) + 1e-8));
}

function beyondVariation(x, q) {
  const moved = Math.exp(x.logpNew) - Math.exp(x.logpOld);
  return [moved < -q.delta_low, moved > q.delta_high];
}

function beyondKL(x, low, high) {
  const kl = binaryKL(x);
  return [x.logRatio < 0 && kl > low, x.logRatio > 0 && kl > high];
}

const maskedRatio = (x, q, outside) =>
  x.advantage === 0 || pushedOut(x, ...outside) ? 0 : Math.min(x.ratio, q.cap) * x.advantage;

const dppoTV = scoreRule((x, q) => maskedRatio(x, q, beyondVariation(x, q)), (x, q) => regionOf(x, ...beyondVariation(x, q)));

const dppoKL = scoreRule(
  (x, q) => maskedRatio(x, q, beyondKL(x, q.delta_low, q.delta_high)),
  (x, q) => regionOf(x, ...beyondKL(x, q.delta_low, q.delta_high)),
);

const trPpo = {
  value: importanceWeighted, // held constant where the token is stopped: the same number, without a gradient
  weight: (x, q) => (pushedOut(x, ...beyondKL(x, q.delta, q.delta)) ? 0 : importanceWeighted(x)),
  region: (x, q) => regionOf(x, ...beyondKL(x, q.delta, q.delta)),
};

// --- Rules without an edge ---------------------------------------------------------------------------------------------------

// τ, and 1 - σ(τ(r-1)) in the form that keeps its digits for large r.
function closedGate(x, q) {
  const tau = bySign(x, q.tau_pos, q.tau_neg), decay = Math.exp(tau * (1 - x.ratio));
  return [tau, decay / (1 + decay)];
}

const sapo = {
  value(x, q) { const [tau, closed] = closedGate(x, q); return (4 / tau) * (1 - closed) * x.advantage; },
  weight(x, q) {
    const closed = closedGate(x, q)[1];
    return x.advantage === 0 || closed === 0 ? 0 : 4 * closed * (1 - closed) * (x.ratio * x.advantage);
  },
  region: noBounds,
};

const LOG_TINY = -87; // nats; what single precision can hold

const vespo = scoreRule((x, q) => {
  const logPhi = bySign(x, q.k_pos, q.k_neg) * x.logRatio + bySign(x, q.lambda_pos, q.lambda_neg) * (1 - x.ratio);
  return x.advantage === 0 || logPhi < LOG_TINY ? 0 : Math.exp(logPhi) * x.advantage;
}, noBounds);

const dro = {
  value: (x, q) => (x.advantage === 0 ? 0 : x.advantage * x.logpNew) - 0.5 * q.tau * x.logRatio ** 2,
  weight: (x, q) => x.advantage - q.tau * x.logRatio,
  region: noBounds,
};

const spo = {
  value(x, q) {
    if (x.advantage === 0) return 0;
    if (q.eps === Infinity) return importanceWeighted(x);
    const size = Math.abs(x.advantage) / (2 * q.eps);
    return x.ratio * (x.advantage - size * (x.ratio - 2)) - size;
  },
  weight(x, q) {
    const moved = q.eps === Infinity ? 0 : (x.ratio - 1) / q.eps;
    return x.advantage === 0 ? 0 : x.ratio * (x.advantage - Math.abs(x.advantage) * moved);
  },
  region: (x, q) => regionOf(x, x.ratio < 1 - q.eps, x.ratio > 1 + q.eps),
};

export const RULE_MATH = {
  ppo: clip, grpo: clip, dual_clip: clip, dapo: clip, gspo: clip, gspo_token: clip, luspo: clip,
  dcpo: priorRule(dcpoBounds),
  bandpo_tv: priorRule(variationBounds), bandpo_chi2: priorRule(chiSquareBounds), bandpo_kl: priorRule(klBounds),
  cispo, dispo, topr, reinforce, rloo: reinforce, importance_sampling: importanceSampling,
  ce_gppo: ceGppo, ppo_rb: ppoRb, aspo, tr_ppo: trPpo, dppo_tv: dppoTV, dppo_kl: dppoKL,
  sapo, vespo, dro, kimi: dro, spo,
};
