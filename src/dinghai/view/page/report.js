// The report: the views of one run over the data that the file itself holds.
import { mountClip } from "./clip.js";
import { el } from "./dom.js";
import { updateName } from "./format.js";
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
      return found(step === null && update !== null ? undefined : data.censuses[key], step === null ? "the updates of the whole run apart" : `${updateName(update)} of step ${step} by itself`);
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
  // A view that fails says so in its place, and takes no other with it.
  const show = async (view, host) => {
    try {
      await view(host, source, run);
    } catch (error) {
      console.error(error);
      host.replaceChildren(el("p", "notes", `This part of the page could not be shown: ${error.message}`));
    }
  };
  await show(mountVerdict, part("summary", "Summary"));
  const { curves, regions_over_time: regions } = data.overview, steps = data.traced.steps;
  if (curves.length) await show(mountCurves, part("curves", "Curves"));
  if (regions.length) await show(mountRegions, part("regions", "What the rule did"));
  if (data.censuses[""]) await show(mountClip, part("clip", "Where the rule acts"));
  if (steps.length) await show(mountTokens, part("tokens", "Token by token"));
  await show(mountSettings, part("settings", "Settings"));
}

showReport();
