// What people say about the clip, each with its verdict and a button that sets the page to show it; and what else there
// is to know: one update per batch, the rules that are not here, the same in a terminal.
import { el } from "./dom.js";
import { button } from "./explain_controls.js";
import { shortFigure } from "./explain_token.js";
import { marked } from "./explain_words.js";

export function mountClaims(data, store, words, toTop) {
  const rows = data.claims.map(claim => {
    const set = el("span", "set");
    const show = button(words.say("claims.show"), () => {
      store.set({
        rule: claim.rule, parameters: claim.parameters, fresh: true,
        ratio: claim.ratio, advantage: claim.advantage, pOld: claim.p_old });
      set.textContent = words.say("claims.set", { rule: claim.rule, r: shortFigure(claim.ratio), A: shortFigure(claim.advantage) });
      toTop();
    });
    show.setAttribute("aria-label", `${words.say("claims.show")}: ${words.say(`claim.${claim.id}`)}`);
    return el("li", `claim ${claim.verdict}`,
      el("span", "verdict-word", words.say(`verdict.${claim.verdict}`)),
      el("div", "", el("p", "says", words.say(`claim.${claim.id}`)), el("p", "truth", words.say(`truth.${claim.id}`))),
      el("div", "do", show, set));
  });
  return el("section", "", el("h2", "", words.say("claims.title")), el("p", "lead", words.say("claims.note")), el("ul", "claims", ...rows));
}

export function mountOnce(store, words) {
  return el("section", "card once", el("h3", "", words.say("once.title")), el("p", "", words.say("once.text")),
    el("div", "buttons", button(words.say("once.show"), () => store.set({ ratio: 1 }))));
}

export function mountMissing(data, words) {
  const rows = data.missing.map(rule => el("li", "", el("b", "", rule.name), ` ${words.ofRegistry(rule.title)}${words.language === "zh" ? "：" : ": "}`, ...marked(words.say(`missing.${rule.reason}`))));
  return el("section", "", el("h2", "", words.say("missing.title")), el("p", "lead", ...marked(words.say("missing.note"))), el("ul", "missing", ...rows));
}

// The command that prints the same.
export function mountTerminal(words) {
  const command = el("pre", "command");
  return {
    node: el("section", "", el("h2", "", words.say("terminal.title")), command),
    show(view) {
      const parts = ["dinghai explain", `--ratio ${view.ratio}`, `--advantage ${view.advantage}`];
      if (view.rule.name !== "ppo") parts.push(`--rule ${view.rule.name}`);
      for (const info of view.rule.parameters) {
        const value = view.parameters[info.name];
        if (value !== info.default) parts.push(`--${info.name} ${value === null ? "none" : value}`);
      }
      if (!view.isImpossible) parts.push(`--probability ${view.pOld}`);
      if (words.language === "zh") parts.push("--lang zh");
      command.textContent = parts.join(" ");
    },
  };
}
