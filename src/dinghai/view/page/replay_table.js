// A table in which every cell has a pair: what the run did, and below it what the other would have done, as bars.
import { el } from "./dom.js";
import { formatShare } from "./format.js";

// rows: [{ name, classes, pairs: [[own, other] for each column], more: texts for the last columns }], names: of the two.
export function pairTable(title, what, names, columns, rows, empty, lastColumns = []) {
  const most = columns.map((_, column) => Math.max(1e-12, ...rows.flatMap(row => row.pairs[column].map(one => one || 0))));
  const head = name => {
    const cell = el("th", "", name);
    cell.scope = "col";
    return cell;
  };
  const body = rows.map(row => {
    const name = el("th", row.classes || "", row.classes ? el("i") : null, row.name);
    name.scope = "row";
    return el("tr", "", name,
      ...row.pairs.map((pair, column) => el("td", "", ...pair.map((value, index) => bar(value, most[column], index ? "other" : "own", names[index])))),
      ...(row.more || []).map(text => el("td", "rp-number", text)));
  });
  const keys = el("p", "keys rp-keys", ...names.map((name, index) => el("span", index ? "other" : "own", el("i"), name)));
  return el("div", "", el("h3", "", title), rows.length ? keys : null, rows.length
    ? el("table", "rp-pairs", el("thead", "", el("tr", "", ...[what, ...columns, ...lastColumns].map(head))), el("tbody", "", ...body))
    : el("p", "note", empty));
}

function bar(value, most, which, name) {
  const fill = el("span", "rp-fill");
  fill.hidden = !value;
  fill.style.width = `${(100 * (value || 0)) / most}%`;
  const number = el("span", "rp-number", formatShare(value));
  number.title = name;
  return el("div", `rp-bar ${which}`, el("span", "rp-track", fill), number);
}
