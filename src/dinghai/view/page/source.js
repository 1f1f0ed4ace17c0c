// Where the live page's views get their data: from the server that the page came from.
import { replayChoice } from "./replay_choice.js";

const KEPT = 60;  // answers about steps, which do not change once a step is complete

// source: as every view takes it. `heads` are told by `listen`; a run's answers are asked for anew once it has grown.
export function liveSource() {
  const heads = new Map(), kept = new Map();

  // What was asked for and has not changed since is not asked for again; `stamp` tells when it has.
  function ask(path, stamp) {
    const before = kept.get(path);
    if (before && before.stamp === stamp) { kept.delete(path); kept.set(path, before); return before.answer; }
    const answer = fetchJson(path);
    kept.set(path, { stamp, answer });
    answer.catch(() => { if (kept.get(path) && kept.get(path).answer === answer) kept.delete(path); });
    for (const oldest of kept.keys()) { if (kept.size > KEPT) kept.delete(oldest); else break; }
    return answer;
  }

  const head = run => heads.get(run) || { version: 0, trace: 0 };
  const address = (run, what, numbers) => {
    const query = Object.entries(numbers || {}).filter(([, value]) => value !== null && value !== undefined);
    return `/api/runs/${run}/${what}${query.length ? "?" + new URLSearchParams(query) : ""}`;
  };

  return {
    live: true,
    runs: [],
    replayed: replayChoice(),
    overview: run => ask(address(run, "overview"), head(run).version),
    traced: run => ask(address(run, "traced"), head(run).trace),
    census: (run, step, update) => ask(address(run, "census", { step, update }), step === null ? head(run).trace : 0),
    groups: (run, step) => ask(address(run, "groups", { step }), 0),
    group: (run, step, group) => ask(address(run, "group", { step, group }), 0),
    replay: run => ask(address(run, "replay"), head(run).trace),
    replayGroup: (run, page, step, group, update) => ask(address(run, "replay_group", { step, group, update, recorded: page.about.recorded_steps }), 0),
    // Whether the tokens' view can show a place: { step, … }.
    async holds(run, { step }) { return (await this.traced(run)).steps.some(one => one.step === step); },

    // What the server says of its runs: [{ id, name, state, steps, version, trace, … }].
    told(list) {
      for (const one of list) {
        const before = heads.get(one.id);
        // A resumed run makes its last steps anew, so what is known of them does not hold.
        if (before && one.steps < before.steps) {
          for (const path of [...kept.keys()]) { if (path.startsWith(`/api/runs/${one.id}/`)) kept.delete(path); }
        }
        heads.set(one.id, one);
      }
      this.runs = list.map(({ id, name }) => ({ id, name }));
    },
  };
}

async function fetchJson(path) {
  let response;
  try {
    response = await fetch(path);
  } catch {
    throw new Error("The server does not answer: has `dinghai watch` ended?");
  }
  const data = await response.json().catch(() => null);
  if (!response.ok) throw new Error((data && data.error) || `The server answered ${response.status}.`);
  return data;
}

const SILENCE = 40_000;  // ms; the server says something at least every 15 s
const LONGEST_WAIT = 30_000;

// Listens to the server. heard(list, notes) is called with every state of the runs, lost(seconds) where the connection
// is gone and tried again after that time, found() where it is back. Nothing is listened to while the page is hidden: a
// browser has few connections for a server, and all its tabs share them.
export function listen(heard, lost, found) {
  let stream = null, wait = 1_000, retry = null, silence = null;

  function connect() {
    clearTimeout(retry);
    disconnect();
    stream = new EventSource("/api/events");
    stream.addEventListener("runs", event => {
      wait = 1_000;
      watchSilence();
      found();
      const { runs, notes } = JSON.parse(event.data);
      heard(runs, notes);
    });
    stream.addEventListener("error", again);
    watchSilence();
  }

  function again() {
    disconnect();
    lost(Math.round(wait / 1_000));
    retry = setTimeout(connect, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }

  function watchSilence() {
    clearTimeout(silence);
    silence = setTimeout(again, SILENCE);
  }

  function disconnect() {
    clearTimeout(silence);
    if (stream) stream.close();
    stream = null;
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(retry);
    if (document.hidden) disconnect();
    else connect();
  });
  if (!document.hidden) connect();
}
