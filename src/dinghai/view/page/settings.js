// The settings of the run, the versions it was trained with, and what wrote the page.
import { el } from "./dom.js";
import { section } from "./overview.js";

function table(rows) {
  return el("table", "settings", ...rows.map(([name, value]) => el("tr", "", el("td", "", name), el("td", "", value))));
}

export async function mountSettings(host, source, run) {
  const data = await source.overview(run);
  const half = Math.ceil(data.settings.length / 2);
  host.replaceChildren();
  if (data.settings.length) {
    host.append(section("Settings", "", el("div", "two", table(data.settings.slice(0, half)), table(data.settings.slice(half)))));
  }
  const listed = rows => rows.map(([name, value]) => `${name} ${value}`).join(", ");
  const footer = el("div", "made");
  if (data.trained_with.length) footer.append(el("p", "", `Trained with ${listed(data.trained_with)}.`));
  footer.append(el("p", "", `This page was written with ${listed(data.versions)}. It holds everything it shows and loads nothing.`));
  host.append(footer);
}
