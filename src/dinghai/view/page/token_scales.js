// Colours of tokens: by region, or by one of their numbers on a scale of a few steps.
import { formatNumber, isNumber } from "./format.js";
import { formatRatio } from "./token_words.js";

// name -> label, column, kind of scale. A diverging one has its middle at 0 of the value that it is drawn from.
export const COLOURINGS = {
  region: { label: "region" },
  weight: { label: "weight w", column: "weight", diverging: true },
  ratio: { label: "ratio r", column: "ratio", diverging: true, logarithmic: true },
  advantage: { label: "advantage A", column: "advantage", diverging: true },
  removed: { label: "gradient removed", column: "removed", unit: "its size f·(|w0| − |w|)·(1 − p)" },
  entropy: { label: "entropy", column: "entropy", unit: "nats" },
};

const STEPS_AROUND_ZERO = [0.1, 0.3, 0.7];  // of the largest value: four colours to either side, the middle one shared
const STEPS_FROM_ZERO = [0.05, 0.2, 0.5, 1];  // five colours; most values are small
const MOST = 0.98;  // the share of the values that the scale tells apart; outliers share the last colour

// The value of a column that is stored once where all of its values are the same.
export const valueAt = (column, place) => (Array.isArray(column) ? column[place] : column);

// Regions tell tokens apart where the rule has bounds; a rule without any is seen by what it takes away.
export function firstColouring(rule) {
  const boundless = rule && rule.boundaries && !rule.boundaries.length && !rule.boundaries_vary_with;
  return boundless ? "removed" : "region";
}

// The scale for a prompt's tokens over all updates, so that a colour means the same in each of them.
export function makeScale(name, group, rule) {
  const colouring = COLOURINGS[name], columns = columnsOf(group, colouring), isBlank = columns.some(column => [column].flat().includes(null));
  const edges = colouring.diverging
    ? (colouring.logarithmic && edgesOfRule(rule)) || aroundZero(largest(columns, colouring))
    : STEPS_FROM_ZERO.map(share => share * largest(columns, colouring));
  const prefix = colouring.diverging ? "d" : "s";
  const shown = edge => (colouring.logarithmic ? formatRatio(Math.exp(edge)) : formatNumber(Number(edge.toPrecision(3))));
  return {
    classOf(fate, place) {
      const stored = valueAt(fate[colouring.column], place), value = number(stored, colouring);
      if (value === null) return stored === null ? "blank" : "lost";
      const step = edges.findIndex(edge => value < edge);
      return prefix + (step < 0 ? edges.length : step);
    },
    legend: [...[...edges, null].map((edge, step) => [prefix + step,
      edge === null ? `≥ ${shown(edges[edges.length - 1])}` : step === 0 ? `< ${shown(edge)}` : `${shown(edges[step - 1])} … ${shown(edge)}`]),
    ...(isBlank ? [["blank", "never scored"]] : [])],
    title: colouring.label + (colouring.unit ? `, ${colouring.unit}` : ""),
  };
}

function number(value, colouring) {
  if (colouring.logarithmic && (value === 0 || value === "Infinity")) return value === 0 ? -Infinity : Infinity;
  if (!isNumber(value)) return null;
  return colouring.logarithmic ? Math.log(value) : value;
}

// Where the rule's bounds are known, r changes colour there, at a third of them and at three times.
function edgesOfRule(rule) {
  const near = ((rule && rule.boundaries) || []).filter(one => one.below === "inside" || one.above === "inside").map(one => one.log_ratio);
  const low = Math.max(...near.filter(edge => edge < 0)), high = Math.min(...near.filter(edge => edge > 0));
  if (!Number.isFinite(low) || !Number.isFinite(high)) return null;
  return [3 * low, low, low / 3, high / 3, high, 3 * high];
}

function aroundZero(size) {
  return [...STEPS_AROUND_ZERO.map(share => -share * size).reverse(), ...STEPS_AROUND_ZERO.map(share => share * size)];
}

const columnsOf = (group, colouring) =>
  group.samples.flatMap(sample => Object.values(sample.updates).map(fate => fate[colouring.column]));

// A round number that nearly all values stay below.
function largest(columns, colouring) {
  const sizes = [];
  for (const column of columns) {
    for (const one of Array.isArray(column) ? column : [column]) {
      const value = number(one, colouring);
      if (value !== null && Number.isFinite(value) && value !== 0) sizes.push(Math.abs(value));
    }
  }
  if (!sizes.length) return 1;
  sizes.sort((a, b) => a - b);
  const size = sizes[Math.min(sizes.length - 1, Math.floor(MOST * sizes.length))];
  const power = 10 ** Math.floor(Math.log10(size));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find(factor => factor * power >= size * (1 - 1e-9)) * power;
}
