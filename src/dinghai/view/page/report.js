// The report: the views of one run over the data that the file itself holds.
import { mountClip } from "./clip.js";
import { el } from "./dom.js";
import { updateName } from "./format.js";
import { mountCurves, mountRegions, mountVerdict } from "./overview.js";
import { mountReplay } from "./replay.js";
import { replayChoice } from "./replay_choice.js";
import { mountSettings } from "./settings.js";
import { printLight, SECTION_NAMES, sections, themeButton } from "./shell.js";
import { mountTokens } from "./tokens.js";

// Answers the views from what is embedded: { overview, traced, censuses, heads, groups, replay, replay_groups }.
function embeddedSource(data) {
  const found = (value, what) => {
    if (value === undefined) throw new Error(`this page does not hold ${what}; \`dinghai watch\` shows it`);
    return value;
  };
  return {
    live: false,
    runs: [{ id: "0", name: data.overview.name }],
    replayed: replayChoice(),
    overview: async () => data.overview,
    traced: async () => data.traced,
    census: async (run, step, update) => {
      const key = [step, update].filter(one => one !== null).join("/");
      return found(step === null && update !== null ? undefined : data.censuses[key], step === null ? "the updates of the whole run apart" : `${updateName(update)} of step ${step} by itself`);
    },
    groups: async (run, step) => found(data.heads[step], `step ${step}`),
    group: async (run, step, group) => found(data.groups[`${step}/${group}`], `prompt ${group} of step ${step}`),
    replay: async () => data.replay,
    replayGroup: async (run, page, step, group, update) => found(data.replay_groups[`${step}/${group}/${update}`], `the replay of prompt ${group} of step ${step}`),
    // Whether the tokens' view can show a place: { step, group, sample, … }, as far as they are said.
    holds: async (run, { step, group, sample }) => {
      if (group === undefined) return step in data.heads;
      const one = data.groups[`${step}/${group}`];
      return Boolean(one) && (sample === undefined || one.samples.some(held => held.id === sample));
    },
  };
}

async function showReport() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const source = embeddedSource(data), run = source.runs[0].id;
  const bar = document.getElementById("bar");
  const place = sections(document.getElementById("main"), bar), part = id => place(id, SECTION_NAMES[id]);
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
  await show(mountVerdict, part("summary"));
  const { curves, regions_over_time: regions } = data.overview, steps = data.traced.steps;
  if (curves.length) await show(mountCurves, part("curves"));
  if (regions.length) await show(mountRegions, part("regions"));
  if (data.censuses[""]) await show(mountClip, part("clip"));
  if (data.replay) await show(mountReplay, part("replay"));
  if (steps.length) await show(mountTokens, part("tokens"));
  await show(mountSettings, part("settings"));
}

showReport();
