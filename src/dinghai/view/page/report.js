// The report: the views of one run over the data that the file itself holds.
import { el } from "./dom.js";
import { factList, mountOverview, section } from "./overview.js";
import { mountSettings } from "./settings.js";
import { tokenSection } from "./tokens.js";

async function showReport() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const source = { live: false, runs: [{ id: "0", name: document.title }], overview: async () => data };
  const main = document.getElementById("main");
  const part = id => {
    const host = el("div", "");
    host.id = id;
    main.append(host);
    return host;
  };
  document.getElementById("facts").append(...factList(data.facts));
  await mountOverview(part("overview"), source, "0");
  if (data.tokens.length) part("tokens").append(section("Token by token", "", tokenSection(data)));
  await mountSettings(part("settings"), source, "0");
}

showReport();
