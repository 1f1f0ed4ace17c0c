// What a reader chooses a replay with: the rule, and for the run's own rule its two bounds.
import { el } from "./dom.js";
import { formatNumber } from "./format.js";
import { nearestPlace } from "./replay_sums.js";

// A slider over the values of a grid with a number beside it. It stands at values of the grid alone: what is between
// them was not computed. changed(place) is called while it moves.
export function boundSlider(name, values, unit, changed) {
  const range = el("input"), number = el("input");
  range.type = "range";
  range.min = "0";
  range.max = String(values.length - 1);
  range.setAttribute("aria-label", `${name}, one of ${values.length} values`);
  number.type = "number";
  number.min = String(values[0]);
  number.max = String(values[values.length - 1]);
  number.step = "any";
  number.setAttribute("aria-label", `${name}, ${unit}; the nearest value of the slider is taken`);
  range.addEventListener("input", () => changed(Number(range.value)));
  number.addEventListener("change", () => {
    if (number.value !== "") changed(nearestPlace(values, Number(number.value)));
    else show(Number(range.value));
  });
  function show(place) {
    range.value = String(place);
    range.setAttribute("aria-valuetext", `${name} ${formatNumber(values[place])}`);
    number.value = formatNumber(values[place]);
  }
  return { node: el("div", "rp-bound", el("b", "", name), range, number), show };
}

// Buttons for the pairs of bounds that are worth trying: the run's own, and those of papers.
// marks: [{ name, low, high, source }], places: for each its two places in the grid.
export function markButtons(marks, chosen) {
  const buttons = marks.map(mark => {
    const press = el("button", "rp-mark", el("span", "", mark.name), el("small", "", boundsText(mark)));
    press.type = "button";
    press.title = mark.source;
    press.addEventListener("click", () => chosen(mark.places));
    return press;
  });
  return {
    node: el("div", "rp-marks", ...buttons),
    show(low, high) {
      marks.forEach(({ places }, index) => buttons[index].setAttribute("aria-pressed", String(places[0] === low && places[1] === high)));
    },
  };
}

const boundsText = ({ low, high }) => (low === high ? formatNumber(low) : `${formatNumber(low)} / ${formatNumber(high)}`);
