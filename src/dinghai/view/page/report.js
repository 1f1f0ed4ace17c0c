// The report: the views of one run over the data that the file itself holds.
import { mountCurves, mountRegions, mountVerdict, heading } from "./overview.js";
import { mountSettings } from "./settings.js";
import { sections, themeButton } from "./shell.js";
import { tokenSection } from "./tokens.js";

async function showReport() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const run = "0", source = { live: false, runs: [{ id: run, name: data.name }], overview: async () => data };
  const bar = document.getElementById("bar");
  const part = sections(document.getElementById("main"), bar);
  bar.after(themeButton(null));
  await mountVerdict(document.getElementById("summary"), source, run);
  if (data.curves.length) await mountCurves(part("curves", "Curves"), source, run);
  if (data.regions_over_time.length) await mountRegions(part("regions", "What the rule did"), source, run);
  if (data.tokens.length) part("tokens", "Token by token").append(...heading("Token by token"), tokenSection(data));
  await mountSettings(part("settings", "Settings"), source, run);
}

showReport();
