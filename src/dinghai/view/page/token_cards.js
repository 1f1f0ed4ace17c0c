// A completion as a card: its tokens in a row, and a strip that shows all of them at once where they are many.
import { el, svgEl } from "./dom.js";
import { formatNumber } from "./format.js";

const STRIP_FROM = 100;  // tokens; fewer are seen at a glance
const STRIP_COLUMNS = 300;  // at most; a card is hardly wider in pixels
const OF_TEXT = /^t | (chosen|more|nothing|moved)\b/g;  // classes that are of no use in the strip

// `view`: { look(card, place), weigh(card, place), select(card, place), hover(card, place), leave() }
export function makeCard(sample, view) {
  const text = el("div", "tokens");
  text.tabIndex = 0;
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-orientation", "horizontal");
  const nodes = sample.text.map((one, place) => {
    const node = el("span", "t", one);
    node.dataset.place = place;
    node.setAttribute("role", "option");
    text.append(node);
    if (one.includes("⏎")) text.append("\n");
    return node;
  });
  const left = sample.length - nodes.length;
  if (left > 0) text.append(el("span", "rest", nodes.length ? ` … ${left} more` : "not in any update"));
  const head = el("p", "head"), strip = nodes.length > STRIP_FROM ? makeStrip(nodes.length) : null;
  const node = el("section", "sample", head, strip && strip.node, text, sample.written === null ? null : el("p", "note", sample.written));
  const widen = el("button", "plain", "⤢");
  widen.type = "button";
  widen.title = "wide, and back";
  widen.setAttribute("aria-label", widen.title);
  widen.addEventListener("click", () => node.classList.toggle("wide"));
  const card = { sample, node, head, text, nodes, strip, widen, update: null, other: null, looks: new Array(nodes.length).fill("t") };

  const placeOf = event => {
    const token = event.target.closest("[data-place]");
    return token ? Number(token.dataset.place) : null;
  };
  text.addEventListener("pointerover", event => {
    const place = placeOf(event);
    if (place === null) view.leave();
    else if (event.pointerType !== "touch") view.hover(card, place);
  });
  text.addEventListener("pointerleave", () => view.leave());
  text.addEventListener("click", event => {
    const place = placeOf(event);
    if (place !== null) view.select(card, place);
  });
  if (strip) {
    strip.node.addEventListener("click", event => {
      const box = strip.node.getBoundingClientRect();
      const share = Math.min(0.9999, Math.max(0, (event.clientX - box.left) / box.width));
      view.select(card, strip.worstIn(Math.floor(share * strip.columns)));
    });
  }
  return card;
}

// The number of pixels is less than that of tokens, so a column shows the most telling one of those that fall on it.
function makeStrip(tokens) {
  const columns = Math.min(tokens, STRIP_COLUMNS);
  const node = svgEl("svg", { viewBox: `0 0 ${columns} 10`, preserveAspectRatio: "none", class: "strip", "aria-hidden": "true" });
  const title = svgEl("title", {}, "The whole completion; each column is the token on it that lost most. Click to go there.");
  const mark = svgEl("rect", { class: "mark", y: 0, width: Math.max(1.5, columns / 150), height: 10, visibility: "hidden" });
  const first = column => Math.ceil((column * tokens) / columns);
  let telling = [];
  return {
    node,
    columns,
    worstIn: column => telling[column],
    draw(look, weigh) {
      const rects = [];
      telling = [];
      let begun = 0, looks = null;
      const close = end => {
        if (looks) rects.push(svgEl("rect", { class: looks, x: begun, y: 0, width: end - begun, height: 10 }));
      };
      for (let column = 0; column < columns; column++) {
        let best = first(column), most = weigh(best);
        for (let place = best + 1; place < first(column + 1); place++) {
          const weight = weigh(place);
          if (weight > most) { best = place; most = weight; }
        }
        telling.push(best);
        const own = look(best);
        if (own !== looks) { close(column); begun = column; looks = own; }
      }
      close(columns);
      node.replaceChildren(title, ...rects, mark);
    },
    select(place) {
      if (place === null) { mark.setAttribute("visibility", "hidden"); return; }
      mark.setAttribute("x", (place / tokens) * columns - 0.5);
      mark.setAttribute("visibility", "visible");
    },
  };
}

// Only what changed is written: a page may hold some ten thousand tokens.
export function paintCard(card, view) {
  card.nodes.forEach((node, place) => {
    const look = view.look(card, place);
    if (look === card.looks[place]) return;
    node.className = look;
    card.looks[place] = look;
  });
  if (card.strip) card.strip.draw(place => card.looks[place].replace(OF_TEXT, ""), place => view.weigh(card, place));
}

export function fillHead(card, facts) {
  const { sample } = card;
  const parts = Object.entries(sample.parts);
  const item = (name, value) => el("span", "", name, value === "" ? null : " ", value === "" ? null : el("b", "", value));
  card.head.replaceChildren(
    item("reward", formatNumber(sample.reward)),
    ...(parts.length > 1 ? parts.map(([name, value]) => item(name, formatNumber(value))) : []),
    ...facts.map(([name, value]) => item(name, value)),
    el("span", "", `${sample.length} tokens${sample.finished ? "" : ", cut"}`),
    card.widen);
}

// The token above or below a place, as the lines happen to be broken.
export function placeInNextLine(nodes, place, down) {
  const box = nodes[place].getBoundingClientRect(), middle = (box.left + box.right) / 2;
  const step = down ? 1 : -1;
  let best = null, distance = Infinity, line = null;
  for (let one = place + step; one >= 0 && one < nodes.length; one += step) {
    const other = nodes[one].getBoundingClientRect();
    if (Math.abs(other.top - box.top) < box.height / 2) continue;
    if (line === null) line = other.top;
    if (Math.abs(other.top - line) > box.height / 2) break;
    const away = Math.abs((other.left + other.right) / 2 - middle);
    if (away < distance) { best = one; distance = away; }
  }
  return best;
}
