// What happens to the token, in words: region, branch of min, gradient, purpose, and the token itself where it is real.
import { el, svgEl } from "./dom.js";
import { marked } from "./explain_words.js";
import { figure, fairFigure, threeDigits, percent, formulaFor, putIn } from "./explain_token.js";

export function mountVerdict(data, words) {
  const chip = el("strong", "chip"), who = el("span", "who"), gradient = el("p", "said"), purpose = el("p", "purpose");
  const more = el("p", "more"), facts = el("p", "facts"), token = el("div", "token"), branch = el("div", "branch");
  const said = el("div", "", el("p", "region", chip, who), gradient, purpose, more, facts, token);
  said.setAttribute("aria-live", "polite");
  const node = el("section", "card verdict", said, branch);
  return {
    node,
    show(view) {
      const { region, effect, weight, unclipped } = view.found;
      const share = percent(unclipped === 0 ? 0 : Math.abs(weight / unclipped));
      chip.className = `chip r-${region}`;
      chip.textContent = words.region(region);
      who.textContent = words.say(`who.${region}`);
      gradient.textContent = view.isImpossible
        ? words.say("controls.impossible", { new: percent(view.pNew) })
        : words.say(`gradient.${view.gradient}`, { w: fairFigure(weight, view.rule) });
      purpose.textContent = words.purpose(region, effect, share);
      more.textContent = words.say("gradient.score");
      more.hidden = !view.rule.holds_constant || !["up", "down"].includes(view.gradient);
      const without = weight === unclipped ? "" : `${words.say("formula.unclipped", { w0: fairFigure(unclipped, view.rule) })} · `;
      facts.textContent = `${without}${words.say("print.effect")}${words.language === "zh" ? "：" : ": "}${words.say(`effect.name.${effect}`)}`;
      token.replaceChildren(...(view.example ? realToken(view.example, data.recorded, words) : []));
      branch.replaceChildren(...(view.clip ? branchParts(view, words) : formulaParts(view, words)));
    },
  };
}

// Where the token stands in its completion.
export function inContext(example) {
  return [el("span", "prompt", example.prompt), example.before, el("mark", `r-${example.region}`, example.token), example.after];
}

function realToken(example, recorded, words) {
  const facts = [
    words.say("token.reward", { reward: figure(example.reward) }),
    `A = ${threeDigits(example.advantage)}`,
    words.say("controls.becomes", { old: percent(example.p_old), new: percent(example.p_old * example.ratio) }),
    words.say("token.where", { step: example.step, update: example.update + 1 }),
  ];
  return [
    el("h4", "", words.say("token.title")),
    el("p", "text", ...inContext(example)),
    el("p", "note", facts.join(" · ")),
    el("p", "note", ...marked(words.say("token.made", { made: recorded.made, seed: recorded.seed }))),
  ];
}

// The two arguments of min with their numbers; the one that is taken is marked.
function branchParts(view, words) {
  const { clip } = view, isDual = clip.dual !== null;
  const smaller = clip.unclipped < clip.clipped ? "unclipped" : clip.clipped < clip.unclipped ? "clipped" : null;
  const short = value => fairFigure(value, view.rule);
  const times = factor => `${short(factor)}·${view.advantage < 0 ? `(${short(view.advantage)})` : short(view.advantage)}`;
  const factors = { unclipped: view.ratio, clipped: Math.min(Math.max(view.ratio, clip.lower), clip.upper) };
  const rows = ["unclipped", "clipped"].map(name => {
    const mark = name === smaller ? words.say(isDual ? "min.smaller" : "min.taken") : "";
    return row(words.say(`min.${name}`), times(factors[name]), short(clip[name]), mark, name === smaller && !isDual);
  });
  if (isDual) rows.push(row(words.say("min.dual"), times(clip.last), short(clip.dual), words.say("min.taken"), true));
  const sentence = words.say(`min.${clip.taken}`, {
    a: short(clip.unclipped), b: short(clip.clipped), m: short(Math.min(clip.unclipped, clip.clipped)), d: short(clip.dual ?? 0) });
  return [
    el("h4", "", words.say("min.title")), el("table", "arguments", ...rows), numberLine(view, words),
    el("p", "said", sentence), el("details", "", el("summary", "", words.say("formula.title")), ...formulaLines(view)),
  ];
}

function row(name, filled, value, mark, isTaken) {
  return el("tr", isTaken ? "taken" : "", el("th", "", name), el("td", "", filled), el("td", "", `= ${value}`), el("td", "mark", mark));
}

// Both arguments on a line, since with negative numbers "smaller" is where people slip.
function numberLine(view, words) {
  const { clip } = view, width = 300, middle = 20;
  const marks = [["unclipped", clip.unclipped], ["clipped", clip.clipped], ...(clip.dual === null ? [] : [["dual", clip.dual]])];
  const own = marks.map(([, value]) => value), spread = Math.max(...own) - Math.min(...own);
  // Numbers that lie close together are told apart only without the zero.
  const hasZero = spread === 0 || spread > 0.05 * Math.max(...own.map(Math.abs));
  const values = hasZero ? [0, ...own] : own, low = Math.min(...values), high = Math.max(...values);
  const pad = (hasZero ? 0.12 : 0.6) * (high - low || 1), from = low - pad, to = high + pad;
  const x = value => 16 + ((value - from) / (to - from)) * (width - 32);
  const svg = svgEl("svg", { class: "number-line", viewBox: `0 0 ${width} 46`, role: "img", "aria-label": words.say("min.line") });
  svg.append(svgEl("line", { class: "axis", x1: 6, x2: width - 6, y1: middle, y2: middle }), svgEl("path", { class: "axis", d: `M12 ${middle - 4}L6 ${middle}L12 ${middle + 4}` }));
  if (hasZero) svg.append(svgEl("line", { class: "axis", x1: x(0), x2: x(0), y1: middle - 4, y2: middle + 4 }), svgEl("text", { x: x(0), y: middle + 18, "text-anchor": "middle" }, "0"));
  const taken = clip.dual !== null ? "dual" : clip.unclipped <= clip.clipped ? "unclipped" : "clipped";
  const labelled = [];
  marks.sort(([one], [other]) => (other === taken) - (one === taken)); // the one that is taken comes first
  for (const [name, value] of marks) {
    const near = labelled.find(place => Math.abs(place - x(value)) < 58);
    if (near !== undefined && Math.abs(near - x(value)) < 1) continue; // the same number
    const classes = name === taken ? `argument taken r-${view.found.region}` : "argument";
    svg.append(svgEl("circle", { class: classes, cx: x(value), cy: middle, r: name === taken ? 6 : 4 }));
    const height = near === undefined ? middle - 10 : middle + 18;
    svg.append(svgEl("text", { class: name === taken ? "taken" : "", x: x(value), y: height, "text-anchor": "middle" }, words.say(`min.${name}`)));
    labelled.push(x(value));
  }
  return el("figure", "line", svg, el("figcaption", "", words.say("min.line")));
}

function formulaParts(view, words) {
  return [el("h4", "", words.say("formula.title")), ...formulaLines(view)];
}

// J and w as formulas, with the numbers put in, and what they come to.
function formulaLines(view) {
  return [["J", view.rule.value, view.found.value], ["w", view.rule.weight, view.found.weight]].map(([symbol, cases, result]) => {
    if (symbol === "w" && view.found.effect === "stopped") return el("pre", "formula", "w = 0");
    const formula = formulaFor(cases, view), filled = putIn(formula, view), shown = figure(result);
    const isNumber = filled.replace(/[()]/g, "") === shown;
    return el("pre", "formula", `${symbol} = ${[formula.replaceAll("-", "−"), ...(isNumber ? [] : [filled]), shown].join("\n  = ")}`);
  });
}
