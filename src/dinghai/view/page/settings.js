// The settings of the run, what it cost, what it was trained with, and what wrote the page.
import { el } from "./dom.js";
import { heading } from "./overview.js";

function table(rows) {
  const row = ([name, value]) => {
    const head = el("th", "", name);
    head.scope = "row";
    return el("tr", "", head, el("td", "", value));
  };
  return el("table", "settings", el("tbody", "", ...rows.map(row)));
}

// model.lora.rank stands as lora.rank under model.
function byTable(rows) {
  const tables = new Map();
  for (const [name, value] of rows) {
    const dot = name.indexOf("."), group = dot < 0 ? "" : name.slice(0, dot);
    if (!tables.has(group)) tables.set(group, []);
    tables.get(group).push([name.slice(dot + 1), value]);
  }
  return [...tables].map(([group, some]) => el("div", "block", group ? el("h4", "", group) : null, table(some)));
}

export function mountSettings(host, source, run) {
  const refresh = async () => {
    const data = await source.overview(run);
    const parts = [...heading("Settings and costs")];
    if (data.costs.length) parts.push(el("h3", "", "What it cost"), el("div", "blocks plain", el("div", "block", table(data.costs))));
    if (data.settings.length) parts.push(el("h3", "", "Settings"), el("div", "blocks", ...byTable(data.settings)));
    if (data.trained_with.length) parts.push(el("h3", "", "Trained with"), el("div", "blocks plain", el("div", "block", table(data.trained_with))));
    const writer = data.versions.map(([name, value]) => `${name} ${value}`).join(", ");
    parts.push(el("p", "made", `This page was written with ${writer}.${source.live ? "" : " It holds everything it shows and loads nothing."}`));
    host.replaceChildren(...parts);
  };
  return refresh().then(() => ({ refresh }));
}
