// What a reader chooses with above the completions: step, update, colours, prompt, and the legend that filters.
import { el } from "./dom.js";
import { formatNumber, formatShare, isNumber, words } from "./format.js";
import { formatRatio } from "./token_words.js";

export function button(text, label, onClick, classes) {
  const node = el("button", classes || "", text);
  node.type = "button";
  if (label) { node.title = label; node.setAttribute("aria-label", label); }
  node.addEventListener("click", onClick);
  return node;
}

// A drop-down whose values are strings.
export function dropDown(label, onChange) {
  const select = el("select");
  select.addEventListener("change", () => onChange(select.value));
  return {
    node: el("label", "", label, select),
    fill(options, chosen) {
      select.replaceChildren(...options.map(([value, text]) => {
        const option = el("option", "", text);
        option.value = value;
        return option;
      }));
      select.value = chosen;
    },
  };
}

// A drop-down between two buttons that go to its neighbours.
export function stepper(label, onChange) {
  let values = [], at = 0;
  const go = by => { if (values[at + by] !== undefined) onChange(values[at + by]); };
  const inner = dropDown(label, value => onChange(Number(value)));
  const back = button("◀", `${label} before`, () => go(-1)), on = button("▶", `${label} after`, () => go(1));
  return {
    node: el("div", "stepper", inner.node, back, on),
    fill(options, chosen) {
      values = options.map(([value]) => value);
      at = values.indexOf(chosen);
      inner.fill(options, String(chosen));
      back.disabled = at <= 0;
      on.disabled = at >= values.length - 1;
    },
  };
}

// A slider over the updates of a batch, between two buttons; its text says which one it is.
export function updateSlider(onChange) {
  let updates = [];
  const range = el("input"), text = el("output");
  range.type = "range";
  range.min = "0";
  range.setAttribute("aria-label", "update of the batch");
  range.addEventListener("input", () => onChange(updates[Number(range.value)]));
  const go = by => { const next = updates[Number(range.value) + by]; if (next !== undefined) onChange(next); };
  const back = button("◀", "update before, key [", () => go(-1)), on = button("▶", "update after, key ]", () => go(1));
  return {
    node: el("div", "stepper", el("label", "", "update"), back, range, on, text),
    go,
    fill(all, chosen, name) {
      updates = all;
      range.max = String(all.length - 1);
      range.value = String(all.indexOf(chosen));
      range.disabled = all.length < 2;
      range.setAttribute("aria-valuetext", name);
      back.disabled = range.value === "0";
      on.disabled = range.value === range.max;
      text.textContent = all.length < 2 ? `${name}, the only one` : name;
    },
  };
}

const PROMPT_COLUMNS = [
  ["of removed", "share of all the gradient that was removed in the step", head => formatShare(head.removed)],
  ["stopped", "tokens whose gradient is exactly zero by the rule or the correction, over all updates", head => String(head.stopped)],
  ["outside", "tokens with the ratio outside the band, over all updates", head => String(head.outside)],
  ["signal", "tokens with A ≠ 0, over all updates", head => String(head.signal)],
  ["worst r", "the ratio farthest from 1, as a factor to either side", head => (isNumber(head.worst) ? `×${formatRatio(Math.exp(head.worst))}` : formatNumber(head.worst))],
  ["reward", "mean of its completions", head => formatNumber(head.reward_mean)],
];

// The prompts of a step as a table, one of them chosen.
export function promptTable(onChoose) {
  const body = el("tbody"), node = el("div", "tk-prompts");
  const headCell = (name, meaning) => {
    const cell = el("th", "", name);
    cell.scope = "col";
    if (meaning) cell.title = meaning;
    return cell;
  };
  node.tabIndex = -1;
  node.append(el("table", "", el("thead", "", el("tr", "", headCell("prompt, worst first"), ...PROMPT_COLUMNS.map(([name, meaning]) => headCell(name, meaning)))), body));
  return {
    node,
    fill(heads, chosen) {
      const place = node.scrollTop;
      body.replaceChildren(...heads.map(head => {
        const name = button(head.prompt || head.prompt_id || "(empty)", "", () => onChoose(head.group));
        name.setAttribute("aria-current", String(head.group === chosen));
        const cell = el("th", "", name);
        cell.scope = "row";
        const row = el("tr", head.group === chosen ? "chosen" : "", cell, ...PROMPT_COLUMNS.map(([, , value]) => el("td", "", value(head))));
        row.addEventListener("click", event => { if (!name.contains(event.target)) onChoose(head.group); });
        return row;
      }));
      node.scrollTop = place;
    },
    // Brings the chosen prompt into sight, within the table alone.
    reveal() {
      const row = body.querySelector(".chosen");
      if (!row) return;
      const isSeen = row.offsetTop >= node.scrollTop + row.offsetHeight && row.offsetTop + row.offsetHeight <= node.scrollTop + node.clientHeight;
      if (!isSeen) node.scrollTop = row.offsetTop - node.clientHeight / 2;
    },
  };
}

// The regions and effects that occur, with counts; pressing one leaves only its tokens in full colour.
export function filterLegend(onToggle) {
  const node = el("ul", "legend"), buttons = new Map();
  return {
    node,
    // entries: [{ key, classes, name, meaning, count, on }]
    fill(entries) {
      for (const [key, one] of buttons) if (!entries.some(entry => entry.key === key)) { one.item.remove(); buttons.delete(key); }
      entries.forEach((entry, place) => {
        let one = buttons.get(entry.key);
        if (!one) {
          const name = el("span", ""), count = el("b", "");
          const press = button(name, "", () => onToggle(entry.key), "filter");
          press.append(count);
          one = { item: el("li", "", press, el("span", "", entry.meaning)), press, name, count };
          buttons.set(entry.key, one);
        }
        one.name.className = "t " + entry.classes;
        one.name.textContent = words(entry.name);
        one.count.textContent = String(entry.count);
        one.press.setAttribute("aria-pressed", String(entry.on));
        one.press.classList.toggle("zero", entry.count === 0);
        if (node.children[place] !== one.item) node.insertBefore(one.item, node.children[place] || null);
      });
    },
  };
}
