// What the sums of a replay say. A vector holds what `keys` of the page's data name, of the tokens of one update.

const plus = (a, b) => a.map((value, place) => value + b[place]);

export const sumOverUpdates = vectors => vectors.reduce(plus);

// [update] vectors of the run's rule with the bounds at two places of the grid.
export function gridSums(grid, low, high) {
  if (!grid.separable) return grid.both.map(update => update[low][high]);
  return grid.low_sums.map((update, place) => plus(update[low], grid.high_sums[place][high]));
}

const share = (part, whole) => (whole > 0 ? part / whole : null);

// What a vector says, beside the vector of the run's own decisions. Shares are of the tokens with a signal, and of the
// gradient that all of them would have without a rule; null where there are none.
export function answerOf(keys, own, vector) {
  const at = Object.fromEntries(keys.map((key, place) => [key, vector[place]]));
  const ownNorm = own[keys.indexOf("norm")], isSame = vector === own;
  const regions = keys.filter(key => key.startsWith("stopped/")).map(key => key.slice("stopped/".length));
  return {
    signal: at.signal, differ: at.differ,
    stopped: share(at.stopped, at.signal), removed: share(at.removed, at.gradient),
    cosine: isSame ? 1 : share(at.dot, Math.sqrt(at.norm * ownNorm)),
    regions: Object.fromEntries(regions.map(name => [name, {
      stopped: share(at[`stopped/${name}`], at.signal), removed: share(at[`removed/${name}`] || 0, at.gradient),
    }])),
  };
}

// The place of the grid value that is nearest by factor; by difference where one of them is 0.
export function nearestPlace(values, wanted) {
  const away = value => (value > 0 && wanted > 0 ? Math.abs(Math.log(value / wanted)) : 1e3 + Math.abs(value - wanted));
  return values.reduce((best, value, place) => (away(value) < away(values[best]) ? place : best), 0);
}
