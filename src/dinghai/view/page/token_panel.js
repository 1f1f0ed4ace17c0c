// Every number of one token, in words and as a table; next to it those of another update to compare with.
import { el } from "./dom.js";
import { formatNumber, formatShare, isNumber, words } from "./format.js";
import { fateSentence, formatRatio, removedShare } from "./token_words.js";

const withLog = logp => (isNumber(logp) ? `${formatNumber(Math.exp(logp))}\nlog ${formatNumber(logp)}` : formatNumber(logp));

// label (with its index after _), what it is in a few words, value. A row whose value is undefined for all shown updates is left out.
function numberRows(data) {
  const meaning = (list, name) => (list.find(one => one.name === name) || { meaning: "" }).meaning;
  const r = data.rule && data.rule.ratio !== "token" ? "of its completion" : "π_new / π_old";
  return [
    ["region", token => meaning(data.regions, token.region), token => words(token.region || "unknown")],
    ["effect", token => meaning(data.effects, token.effect), token => token.effect || "unknown"],
    ["r", r, token => formatRatio(token.ratio)],
    ["log r", "nats", token => formatNumber(isNumber(token.ratio) ? Math.log(token.ratio) : null)],
    ["A", "advantage", token => formatNumber(token.advantage)],
    ["w", "its gradient's weight", token => formatNumber(token.weight)],
    ["w_0", "without the rule: r·A" + (data.corrected ? "·correction" : ""), token => formatNumber(token.weight_unclipped)],
    ["removed", "of its own gradient", token => formatShare(removedShare(token))],
    ["", "of all removed in the prompt", token => formatShare(token.shareOfRemoved)],
    ["entropy", "nats, of the choice here", token => formatNumber(token.entropy)],
    ["π_new", "probability now", token => withLog(token.logp_new)],
    ["π_old", "before the batch", token => withLog(token.logp_old)],
    ["π_sampler", "of the engine", token => withLog(token.logp_sampler)],
    ["correction", "of the rollout, within w", token => (token.correction === undefined ? undefined : formatNumber(token.correction))],
    ["KL weight", "the penalty's, beside w", token => (token.kl_weight === undefined ? undefined : formatNumber(token.kl_weight))],
  ];
}

// What follows a line break is lesser.
function numberCell(text) {
  const [value, lesser] = (text === undefined ? "–" : text).split("\n");
  return el("td", "", value, lesser ? el("small", "", lesser) : null);
}

// `tokens`: the token in the update that is shown and, to compare, in another. All but the fates are the same.
export function fillPanel(panel, data, tokens, names) {
  const [token] = tokens;
  const title = el("p", "tk-name", el("b", "", token.text), token.bytes ? el("small", "", ` bytes ${token.bytes}`) : null);
  const where = el("p", "tk-where", `token ${token.place + 1} of ${token.length}, id ${token.token}, in completion ${token.sample}`);
  const sentence = el("p", "tk-sentence", fateSentence(token, data.regions.find(one => one.name === token.region), data.rule));
  const table = el("table", "tk-numbers");
  if (tokens.length > 1) {
    table.append(el("thead", "", el("tr", "", el("td"), ...names.map(name => {
      const cell = el("th", "", name);
      cell.scope = "col";
      return cell;
    }))));
  }
  const body = el("tbody");
  for (const [label, note, value] of numberRows(data)) {
    const values = tokens.map(value);
    if (values.every(one => one === undefined)) continue;
    const more = typeof note === "function" ? note(token) : note;
    const [letter, index] = label.split("_");
    const head = el("th", "", letter, index ? el("sub", "", index) : null, label && more ? " " : null, more ? el("small", "", more) : null);
    head.scope = "row";
    const differ = values.length > 1 && values[0] !== values[1];
    body.append(el("tr", differ ? "differs" : "", head, ...values.map(numberCell)));
  }
  table.append(body);
  panel.replaceChildren(title, where, sentence, table);
}
