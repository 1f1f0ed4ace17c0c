// In the view of the tokens: which of them the replay that the reader chose decides otherwise, asked for when needed.
import { el } from "./dom.js";
import { otherFates, replayedSentence, turnsText } from "./replay_tokens.js";
import { dropDown } from "./token_controls.js";
import { valueAt } from "./token_scales.js";

const AS_RUN = "run", AS_REPLAYED = "replay";

// changed(): the marks are to be painted anew. The view calls take(…) before it paints, and asks for the rest then.
export function replayMarks(source, run, changed) {
  const choices = source.replayed, note = el("p", "rp-turns"), kept = new Map();
  const picker = dropDown("decisions", value => choices.show(value === AS_REPLAYED));
  const choice = () => (choices ? choices.of(run) : null), isOn = () => choice() !== null && choices.isShown;
  let fates = new Map(), label = "", update = null, made = null, isMade = false;

  // What is known of an update's tokens; null while it is on its way.
  function ask(page, step, group, at) {
    const key = `${step}/${group}/${at}`;
    if (!kept.has(key)) {
      kept.set(key, null);
      source.replayGroup(run, page, step, group, at).then(found => { kept.set(key, found); changed(); })
        .catch(error => { kept.set(key, { error }); changed(); });
    }
    return kept.get(key);
  }

  if (choices) {
    const stop = choices.follow(() => { if (note.isConnected) changed(); else if (isMade) stop(); });
  }
  return {
    node: picker.node, note, isOn,
    take(overview, group, step, at) {
      const chosen = choice();
      isMade = true;
      if (chosen && chosen.page !== made) { kept.clear(); made = chosen.page; }  // what was read anew has a grid of its own
      fates = new Map();
      update = at;
      label = chosen ? chosen.label : "";
      picker.node.hidden = chosen === null;
      note.hidden = !isOn();
      if (!chosen) return;
      picker.fill([[AS_RUN, "as the run took them"], [AS_REPLAYED, `replayed: ${label}`]], isOn() ? AS_REPLAYED : AS_RUN);
      if (!isOn()) return;
      const found = ask(chosen.page, step, group.group, at);
      if (found === null) note.textContent = "The tokens of this update are being replayed.";
      else if (found.error) note.textContent = `This update cannot be replayed: ${found.error.message}`;
      else {
        const told = otherFates(overview, group, at, found, chosen);
        fates = told || new Map();
        note.replaceChildren(...(told ? turnsText(label, told) : [`Which tokens ${label} decides otherwise depends on more than this prompt, and is not shown token by token.`]));
      }
    },
    classOf: (card, place) => (card.update === update && fates.has(card.sample.id) && fates.get(card.sample.id).has(place)
      ? ` x-${fates.get(card.sample.id).get(place).kind}` : ""),
    sentence: (card, place) => (isOn() && card.update === update ? replayedSentence(label, (fates.get(card.sample.id) || new Map()).get(place)) : ""),
    // The tokens with another fate, the one with the largest weight at stake first; null where the run itself is shown.
    differing(group, at) {
      if (!isOn()) return null;
      const all = group.samples.flatMap(sample => [...(fates.get(sample.id) || new Map()).keys()].map(place => {
        const stake = Math.abs(valueAt(sample.updates[at].weight_unclipped, place));
        return { sample, place, loss: Number.isNaN(stake) ? Infinity : stake };
      }));
      return all.sort((a, b) => b.loss - a.loss || a.sample.id - b.sample.id || a.place - b.place);
    },
  };
}
