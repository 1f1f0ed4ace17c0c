// Everything the page says, in the language chosen.
import { el } from "./dom.js";

export const LANGUAGES = { en: "en", zh: "zh-CN" };

export function makeWords(data, language) {
  const texts = data.words[language], translated = language === "zh" ? data.translated : {};
  const words = {
    language,
    // The text of a key, with its {placeholders} filled in.
    say(key, values = {}) {
      if (!Object.hasOwn(texts, key)) throw new Error(`no text ${key}`);
      return texts[key].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
    },
    // What the registry says of a rule or parameter.
    ofRegistry: text => (Object.hasOwn(translated, text) ? translated[text] : text),
    // A region by the name that metrics have for it, in Chinese with its translation.
    region: name => (language === "en" ? texts[`region.${name}`] : `${name} ${texts[`region.${name}`]}`),
    // What a rule that has this effect on a token of this region is after.
    purpose(region, effect, share) {
      const special = `for.${region}.${effect}`;
      return words.say(Object.hasOwn(texts, special) ? special : `effect.${effect}`, { share });
    },
  };
  return words;
}

// Text in which `this` is code.
export function marked(text) {
  return text.split("`").map((part, i) => (i % 2 ? el("code", "", part) : part));
}

// The language asked for, or that of the browser.
export function firstLanguage(asked) {
  if (asked === "en" || asked === "zh") return asked;
  const first = (navigator.languages && navigator.languages[0]) || navigator.language || "en";
  return first.toLowerCase().startsWith("zh") ? "zh" : "en";
}
