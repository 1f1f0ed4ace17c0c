// What both pages have around their views: the sections with their table of contents, and the choice of light or dark.
import { el } from "./dom.js";

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
    button.addEventListener("click", () => host.scrollIntoView({ behavior: still.matches ? "auto" : "smooth" }));
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
