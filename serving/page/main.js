// The start: what there is on this server, and which view is seen.

import { ask, usesKey } from "./api.js";
import { startCompare } from "./compare.js";
import { byId, element } from "./elements.js";
import { startGenerate } from "./generate.js";
import { startSearch } from "./search.js";
import { startStatistics } from "./statistics.js";

const OF_AN_INDEX = ["search", "compare", "statistics"];

/** Index and model of the last choice are not kept: the page leaves nothing behind. */
async function start() {
  const [{ indexes }, { data: models }, { name, version }] = await Promise.all([
    ask("v1/indexes"),
    ask("v1/models"),
    ask("version"),
  ]);
  byId("version").textContent = `${name} ${version}`;
  byId("api-link").hidden = usesKey(); // a link brings no key
  const select = byId("index");
  select.append(...indexes.map((index) => element("option", { value: index.name }, index.name)));
  const index = () => indexes.find((each) => each.name === select.value);

  const compare = startCompare(index);
  const runs = {
    search: startSearch(index, (query, text) => {
      compare.fill(query, text);
      location.hash = "#compare";
    }),
    compare: compare.run,
    statistics: startStatistics(index),
    generate: () => {},
  };
  const views = [...(indexes.length ? OF_AN_INDEX : []), ...(models.length ? ["generate"] : [])];
  if (!views.length) byId("start-error").textContent = "this server has neither an index nor a model; start it with one";
  if (models.length) startGenerate(models, () => !byId("view-generate").hidden);

  for (const link of document.querySelectorAll("nav a")) link.hidden = !views.includes(link.hash.slice(1));
  const shown = () => (views.includes(location.hash.slice(1)) ? location.hash.slice(1) : views[0]);
  const show = () => {
    const view = shown();
    for (const each of Object.keys(runs)) byId(`view-${each}`).hidden = each !== view;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    byId("index-choice").hidden = !OF_AN_INDEX.includes(view);
    runs[view]?.();
  };
  select.addEventListener("change", () => runs[shown()]());
  addEventListener("hashchange", () => {
    show();
    byId("main").focus();
  });
  show();
  if (shown() === "search") byId("query").focus();
}

start().catch((error) => {
  byId("start-error").textContent = error.message;
});
