// Numbers and names as a reader wants them.

// Non-finite numbers are stored as their names.
export const isNumber = value => typeof value === "number";

export function formatNumber(value) {
  if (!isNumber(value)) return value === null || value === undefined ? "–" : String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

export function formatShare(value) {
  if (!isNumber(value)) return formatNumber(value);
  const percent = value * 100;
  if (percent === 0 || percent === 100) return percent + "%";
  // One decimal, so that shares below each other align; more only where it would be lost.
  return (Math.abs(percent) < 0.1 ? String(Number(percent.toPrecision(2))) : percent.toFixed(1)) + "%";
}

// The same at an axis, where round numbers stand.
export const axisShare = text => text.replace(/\.0%$/, "%");

// An update of a batch, whose index counts from 0, as a reader counts.
export const updateName = index => `update ${index + 1}`;

// Names of regions as words: no_signal -> no signal.
export const words = name => name.replaceAll("_", " ");
