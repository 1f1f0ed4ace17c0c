// A card that holds one figure: its title, key, tooltip, and a button that saves it as a file.
import { el, keyed, makeTip, svgEl } from "./dom.js";
import { saveButton } from "./save.js";

// spec: { title, aside, note, keys: [{ classes, text }], label, draw(card, width) -> svg, remark }; the last is for the file.
// `label` says to a reader who does not see the figure what it shows. Returns { node, tip, update(spec) }.
export function chartBox(spec) {
  const heading = el("h3"), note = el("p", "note"), keys = el("div", "keys");
  let current = spec, drawn = null, width = 0;
  const save = saveButton(() => ({ ...current, svg: drawn }));
  const node = el("section", "card", heading, save, note, keys);
  const card = { node, tip: makeTip(node), place: null, update };
  card.tip.node.setAttribute("role", "status");

  function write() {
    heading.replaceChildren(current.title, current.aside ? el("small", "", current.aside) : "");
    note.textContent = current.note || "";
    note.hidden = !current.note;
    keys.replaceChildren(...(current.keys || []).map(one => keyed(one.classes, one.text)));
    keys.hidden = !current.keys || !current.keys.length;
  }

  function draw() {
    if (width < 60) return;
    const focused = drawn !== null && document.activeElement === drawn;
    const svg = current.draw(card, width);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", current.label || current.title);
    if (drawn) drawn.replaceWith(svg); else node.insertBefore(svg, node.lastChild);
    drawn = svg;
    if (focused) svg.focus({ preventScroll: true });
  }

  function update(next) {
    current = next;
    card.tip.hide();
    write();
    draw();
  }

  write();
  // Drawing changes the card's height: outside of the observer's own round, or the browser complains of a loop.
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (!node.isConnected) return;
    const style = getComputedStyle(node);
    const now = Math.floor(node.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
    if (now < 60 || now === width) return;
    width = now;
    draw();
  })).observe(node);
  return card;
}

// Reads a figure along its x axis: by pointer, and with the arrow keys once it has the focus.
// places: the x values that can be read, ascending; tipAt(place) -> what the tooltip shows.
export function crosshair(card, plot, places, tipAt) {
  if (!places.length) return;
  const top = plot.top, bottom = plot.bottom;
  const cross = svgEl("line", { class: "cross", y1: top, y2: bottom, visibility: "hidden" });
  plot.svg.append(cross);
  plot.svg.setAttribute("tabindex", "0");

  const show = (place, pointerY) => {
    card.place = place;
    const at = plot.x(place);
    cross.setAttribute("x1", at);
    cross.setAttribute("x2", at);
    cross.setAttribute("visibility", "visible");
    const hostBox = card.node.getBoundingClientRect(), box = plot.svg.getBoundingClientRect();
    const scale = box.width / plot.width;
    card.tip.show(box.left - hostBox.left + at * scale, (pointerY === undefined ? box.top + top : pointerY) - hostBox.top + 16, ...tipAt(place));
  };
  const hide = () => { cross.setAttribute("visibility", "hidden"); card.tip.hide(); };
  const nearest = event => {
    const box = plot.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * plot.width;
    return places.reduce((best, one) => (Math.abs(plot.x(one) - at) < Math.abs(plot.x(best) - at) ? one : best));
  };

  const point = event => show(nearest(event), event.clientY);
  plot.svg.addEventListener("pointermove", point);
  plot.svg.addEventListener("pointerdown", point);
  // A finger that is lifted leaves the figure; what it touched stays to be read.
  plot.svg.addEventListener("pointerleave", event => { if (event.pointerType !== "touch") hide(); });
  plot.svg.addEventListener("blur", hide);
  plot.svg.addEventListener("focus", () => {
    if (plot.svg.matches(":focus-visible")) show(card.place === null ? places[places.length - 1] : closest(places, card.place));
  });
  plot.svg.addEventListener("keydown", event => {
    const here = card.place === null ? places.length - 1 : places.indexOf(closest(places, card.place));
    const far = Math.max(1, Math.round(places.length / 10));
    const to = {
      ArrowLeft: here - 1, ArrowRight: here + 1, PageUp: here - far, PageDown: here + far, Home: 0, End: places.length - 1,
    }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    show(places[Math.max(0, Math.min(places.length - 1, to))]);
  });
}

function closest(places, wanted) {
  return places.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best));
}
