// The report: the views of one run over the data that the file itself holds.
import { mountClip } from "./clip.js";
import { mountCurves, mountRegions, mountVerdict } from "./overview.js";
import { mountSettings } from "./settings.js";
import { printLight, sections, themeButton } from "./shell.js";
import { mountTokens } from "./tokens.js";

// Answers the views from what is embedded: { overview, traced, censuses, heads, groups }.
function embeddedSource(data) {
  const found = (value, what) => {
    if (value === undefined) throw new Error(`this page does not hold ${what}; \`dinghai watch\` shows it`);
    return value;
  };
  return {
    live: false,
    runs: [{ id: "0", name: data.overview.name }],
    overview: async () => data.overview,
    traced: async () => data.traced,
    census: async (run, step, update) => {
      const key = [step, update].filter(one => one !== null).join("/");
      return found(step === null && update !== null ? undefined : data.censuses[key], step === null ? "the updates of the whole run apart" : `update ${update} of step ${step} by itself`);
    },
    groups: async (run, step) => found(data.heads[step], `step ${step}`),
    group: async (run, step, group) => found(data.groups[`${step}/${group}`], `prompt ${group} of step ${step}`),
  };
}

async function showReport() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const source = embeddedSource(data), run = source.runs[0].id;
  const bar = document.getElementById("bar");
  const part = sections(document.getElementById("main"), bar);
  bar.after(themeButton(null));
  printLight();
  await mountVerdict(part("summary", "Summary"), source, run);
  const { curves, regions_over_time: regions } = data.overview, steps = data.traced.steps;
  if (curves.length) await mountCurves(part("curves", "Curves"), source, run);
  if (regions.length) await mountRegions(part("regions", "What the rule did"), source, run);
  if (data.censuses[""]) await mountClip(part("clip", "Where the rule acts"), source, run);
  if (steps.length) await mountTokens(part("tokens", "Token by token"), source, run);
  await mountSettings(part("settings", "Settings"), source, run);
}

showReport();
