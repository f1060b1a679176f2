// A query and a document side by side, as their terms.

import { ask } from "./api.js";
import { bar, byId, count, element, latest, number, settled } from "./elements.js";

const WAIT_MS = 250;
const SHOWN = 60;

/** Start the view; `index` gives the chosen index. Returns what fills it, and what computes it anew. */
export function startCompare(index) {
  const query = byId("compare-query");
  const text = byId("compare-document");

  const run = latest(async (signal) => {
    const chosen = index();
    if (!chosen || !query.value.trim() || !text.value.trim()) {
      byId("terms").replaceChildren();
      byId("compare-status").textContent = "Write a query and a document.";
      return;
    }
    const encoded = async (input, role) => {
      const body = { model: chosen.name, input, role, return_tokens: true };
      const { data } = await ask("v1/encode", body, signal);
      return data[0].indices.map((unit, place) => [unit, data[0].tokens[place], data[0].values[place]]);
    };
    const [ofQuery, ofText] = await Promise.all([encoded(query.value, "query"), encoded(text.value, "document")]);
    if (signal.aborted) return;
    const { both, onlyQuery, onlyText } = parted(ofQuery, ofText);
    byId("terms").replaceChildren(
      bothTable(both, Math.max(0, ...ofQuery.map((term) => term[2])), Math.max(0, ...ofText.map((term) => term[2]))),
      element("div", { class: "sides" }, only("In the query only", onlyQuery), only("In the document only", onlyText)),
    );
    byId("compare-status").textContent =
      `${count(ofQuery.length, "term")} of the query, ${count(ofText.length, "term")} of the document, ` +
      `${both.length} in both.`;
  }, failed);

  function failed(message) {
    byId("compare-error").textContent = message;
    if (message) {
      byId("terms").replaceChildren();
      byId("compare-status").textContent = "";
    }
  }

  const typed = settled(run, WAIT_MS);
  for (const field of [query, text]) field.addEventListener("input", typed);
  byId("compare-form").addEventListener("submit", (event) => event.preventDefault());
  return {
    run,
    fill(ofQuery, ofText) {
      query.value = ofQuery;
      text.value = ofText;
    },
  };
}

/** Terms of both, by the share that they add to the score, and those of one alone as they come. */
export function parted(ofQuery, ofText) {
  const weights = new Map(ofText.map(([unit, , weight]) => [unit, weight]));
  const units = new Set(ofQuery.map(([unit]) => unit));
  const both = ofQuery
    .filter(([unit]) => weights.has(unit))
    .map(([unit, token, weight]) => ({ token, query: weight, text: weights.get(unit), share: weight * weights.get(unit) }))
    .sort((a, b) => b.share - a.share);
  return {
    both,
    onlyQuery: ofQuery.filter(([unit]) => !weights.has(unit)),
    onlyText: ofText.filter(([unit]) => !units.has(unit)),
  };
}

function bothTable(both, mostOfQuery, mostOfText) {
  if (!both.length) return element("p", {}, "They share no term, so the score is 0.");
  const head = (name, kind) => element("th", { scope: "col", class: kind }, name);
  const cell = (kind, value, most) => {
    const parts = [element("span", { class: "room" }, bar(value / most)), element("span", { class: "number" }, number(value))];
    return element("td", { class: kind }, element("div", { class: "weight" }, ...(kind === "query" ? parts : parts.reverse())));
  };
  const rows = both.map(({ token, query, text, share }) =>
    element(
      "tr",
      {},
      cell("query", query, mostOfQuery),
      element("th", { scope: "row", class: "of-term term" }, token),
      cell("document", text, mostOfText),
      element("td", { class: "number" }, number(share)),
    ),
  );
  const score = both.reduce((sum, { share }) => sum + share, 0);
  return element(
    "table",
    { class: "both" },
    element("caption", {}, "In both"),
    element("thead", {}, element("tr", {}, head("Query", "query"), head("Term", "of-term"), head("Document", "document"), head("Share", "share"))),
    element("tbody", {}, ...rows),
    element("tfoot", {}, element("tr", {}, element("th", { colspan: 3, scope: "row" }, "Score"), element("td", { class: "number" }, number(score)))),
  );
}

function only(heading, terms) {
  const items = terms.slice(0, SHOWN).map(([, token, weight]) =>
    element("li", {}, element("span", { class: "term" }, token), " ", element("span", { class: "number" }, number(weight))),
  );
  if (terms.length > SHOWN) items.push(element("li", {}, `and ${terms.length - SHOWN} more`));
  return element(
    "div",
    {},
    element("h3", {}, heading),
    items.length ? element("ul", { class: "only" }, ...items) : element("p", { class: "note" }, "none"),
  );
}
