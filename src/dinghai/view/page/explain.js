// The explainer: one token, one rule, value and gradient side by side.
import { el } from "./dom.js";
import { makeStore, asAddress, fromAddress } from "./explain_store.js";
import { makeWords, firstLanguage, LANGUAGES } from "./explain_words.js";
import { derive } from "./explain_token.js";
import { mountCurve } from "./explain_curves.js";
import { mountControls, button } from "./explain_controls.js";
import { mountVerdict } from "./explain_verdict.js";
import { mountCases } from "./explain_cases.js";
import { mountStep } from "./explain_step.js";
import { mountClaims, mountOnce, mountMissing, mountTerminal } from "./explain_claims.js";

function themeSwitch(words) {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const node = button("", () => { root.dataset.theme = theme() === "dark" ? "light" : "dark"; write(); }, "theme");
  function write() {
    node.textContent = theme() === "dark" ? "☀" : "☾";
    node.title = words.say(theme() === "dark" ? "theme.light" : "theme.dark");
    node.setAttribute("aria-label", node.title);
  }
  system.onchange = write;
  write();
  return node;
}

function build(data, store, language, host) {
  const words = makeWords(data, language);
  document.documentElement.lang = LANGUAGES[language];
  document.title = `${words.say("title")} · Dinghai`;
  const switchLanguage = () => {
    store.forget();
    const place = scrollY;
    build(data, store, language === "en" ? "zh" : "en", host);
    scrollTo(0, place);
    host.querySelector(".language").focus({ preventScroll: true });
  };
  const other = button(words.say("language.other"), switchLanguage, "language");
  other.lang = language === "en" ? "zh-CN" : "en";
  const onRatio = ratio => store.set({ ratio });
  const cases = mountCases(data, store, words), controls = mountControls(store, words);
  const curves = ["value", "weight"].map(kind => mountCurve(kind, words, onRatio));
  const verdict = mountVerdict(data, words), step = mountStep(store, words), terminal = mountTerminal(words);
  const desk = el("div", "desk", controls.node, el("div", "plots", ...curves.map(curve => curve.node)), verdict.node);
  const toDesk = () => desk.scrollIntoView({ block: "start" });
  host.replaceChildren(
    el("header", "", el("div", "tools", el("p", "brand", words.say("brand")), other, themeSwitch(words)),
      el("h1", "", words.say("title")), el("p", "lead", words.say("lead"))),
    el("main", "", cases.node, desk, el("div", "below", step.node, mountOnce(store, words)),
      mountClaims(data, store, words, toDesk), mountMissing(data, words), terminal.node),
    el("footer", "made", words.say("footer")),
  );
  const parts = [cases, ...curves, controls, verdict, step, terminal];
  const show = state => {
    const view = derive(state);
    for (const part of parts) part.show(view);
  };
  store.onChange(show);
  let waiting = 0;
  store.onChange(state => {
    clearTimeout(waiting);
    waiting = setTimeout(() => history.replaceState(null, "", asAddress(state)), 250);
  });
  show(store.state);
}

function startPage() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const store = makeStore(data.rules, fromAddress(location.hash) || data.start);
  const language = firstLanguage(data.language);
  build(data, store, language, document.getElementById("page"));
  // Not location.hash: what was set last may have been written there meanwhile.
  addEventListener("hashchange", event => store.begin(fromAddress(new URL(event.newURL).hash)));
}

startPage();
