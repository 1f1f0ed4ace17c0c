// What both pages have around their views: the sections with their table of contents, and the choice of light or dark.
import { el } from "./dom.js";

// id of a section -> its name in the bar
export const SECTION_NAMES = {
  summary: "Summary", compare: "Runs compared", curves: "Curves", regions: "What the rule did", clip: "Where the rule acts",
  replay: "Another ε or rule", tokens: "Token by token", settings: "Settings",
};

// The part of an address that the tokens' view reads. place: { step, group, update, sample, position }, as far as known.
export function placeHash({ step, group, update, sample, position }) {
  const given = Object.entries({ step, group, update, sample, token: position });
  return given.filter(([, value]) => value !== undefined && value !== null).map(([key, value]) => [key, String(value)]);
}

const FOLLOWED = 3000;  // ms

// Scrolls to a section, and again when a view above it grows meanwhile, until the reader scrolls by himself.
function goTo(host, behavior) {
  host.scrollIntoView({ behavior });
  const ended = new AbortController(), height = () => document.documentElement.scrollHeight;
  let before = height();
  const watcher = new ResizeObserver(() => {
    if (height() === before) return;  // as at the beginning, when it is told of the size that is
    before = height();
    host.scrollIntoView({ behavior: "instant" });
  });
  watcher.observe(document.body);
  ended.signal.addEventListener("abort", () => watcher.disconnect());
  for (const kind of ["wheel", "touchstart", "keydown", "pointerdown"]) {
    addEventListener(kind, () => ended.abort(), { signal: ended.signal, passive: true });
  }
  setTimeout(() => ended.abort(), FOLLOWED);
}

// A link to a section; `asked`, pairs of a name and a value, goes to the address, which the section follows.
export function linkTo(section, text, asked) {
  const link = el("a", "to", text), written = () => {
    const kept = new URLSearchParams(location.hash.slice(1));
    for (const key of ["step", "group", "update", "sample", "token"]) kept.delete(key);
    for (const [key, value] of asked) kept.set(key, value);
    return `#${kept}`;
  };
  link.href = asked ? written() : `#${section}`;
  link.dataset.section = section;
  link.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();  // the rest of the address stays: it says which run is shown
    const host = document.getElementById(section), hash = asked ? written() : location.hash;
    if (host) goTo(host, "instant");
    if (!asked) return;
    if (location.hash === hash) dispatchEvent(new HashChangeEvent("hashchange", { newURL: location.href }));  // asked for once more
    else location.hash = hash;
  });
  return link;
}

// Sections in order, each with an entry in the bar that stays at the top. part(id, name) -> the element to fill, which is
// made where the page has none with that id.
export function sections(main, bar) {
  const entries = new Map(), still = matchMedia("(prefers-reduced-motion: reduce)");
  const watcher = new IntersectionObserver(seen => {
    for (const one of seen) entries.get(one.target).here = one.isIntersecting;
    const first = [...entries.values()].find(entry => entry.here);
    for (const entry of entries.values()) entry.button.classList.toggle("here", entry === first);
    if (first) bar.scrollLeft = first.button.offsetLeft - bar.offsetLeft - 24;  // on a phone the bar is wider than the page
  }, { rootMargin: "-12% 0px -60% 0px" });
  return (id, name) => {
    const host = document.getElementById(id) || el("section", "part");
    host.id = id;
    if (!host.isConnected) main.append(host);
    const button = el("button", "", name);
    button.type = "button";
    button.addEventListener("click", () => goTo(host, still.matches ? "auto" : "smooth"));
    bar.append(button);
    entries.set(host, { button, here: false });
    watcher.observe(host);
    // A view that has nothing to show hides itself.
    new MutationObserver(() => { button.hidden = host.hidden; }).observe(host, { attributes: true, attributeFilter: ["hidden"] });
    return host;
  };
}

// On paper the page is light, whatever was chosen for the screen.
export function printLight() {
  const root = document.documentElement;
  let before = null;
  addEventListener("beforeprint", () => { before = root.dataset.theme; root.dataset.theme = "light"; });
  addEventListener("afterprint", () => { if (before === undefined) delete root.dataset.theme; else root.dataset.theme = before; });
}

// A button that turns light into dark and back. kept: { read(), write(theme) }, or null where nothing is to be kept.
export function themeButton(kept) {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const button = el("button", "theme");
  button.type = "button";
  const theme = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const write = () => {
    const other = theme() === "dark" ? "light" : "dark";
    button.textContent = theme() === "dark" ? "☀" : "☾";
    button.title = `Show the page in ${other} colours`;
    button.setAttribute("aria-label", button.title);
  };
  const before = kept && kept.read();
  if (before === "light" || before === "dark") root.dataset.theme = before;
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    if (kept) kept.write(root.dataset.theme);
    write();
  });
  system.addEventListener("change", write);
  write();
  return button;
}
