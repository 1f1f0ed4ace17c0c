// The settings of the run, what it cost, what it was trained with, and what wrote the page.
import { el } from "./dom.js";
import { heading } from "./overview.js";

function table(rows) {
  return el("table", "settings", el("tbody", "", ...rows.map(([name, value]) => el("tr", "", el("td", "", name), el("td", "", value)))));
}

function halves(rows) {
  const half = Math.ceil(rows.length / 2);
  return el("div", "two", table(rows.slice(0, half)), table(rows.slice(half)));
}

export function mountSettings(host, source, run) {
  const refresh = async () => {
    const data = await source.overview(run);
    const parts = [];
    if (data.settings.length) parts.push(...heading("Settings"), halves(data.settings));
    if (data.costs.length) parts.push(el("h3", "", "What it cost"), halves(data.costs));
    const versions = [...data.trained_with.map(([name, value]) => [`trained with ${name}`, value])];
    if (versions.length) parts.push(el("h3", "", "Versions"), halves(versions));
    const writer = data.versions.map(([name, value]) => `${name} ${value}`).join(", ");
    parts.push(el("p", "made", `This page was written with ${writer}.${source.live ? "" : " It holds everything it shows and loads nothing."}`));
    host.replaceChildren(...parts);
  };
  return refresh().then(() => ({ refresh }));
}
