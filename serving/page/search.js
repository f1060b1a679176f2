// Search as you type.

import { ask } from "./api.js";
import { bar, byId, count, element, latest, number, settled } from "./elements.js";
import { excerpt, marked, markedWords, shareOfWords } from "./marks.js";

const WAIT_MS = 120;
const FIRST = 10;
const MOST = 100;
const TERMS = 6;

/**
 * Start the view.
 * @param index what gives the chosen index
 * @param compare called with a query and the text of a document, to see them side by side
 */
export function startSearch(index, compare) {
  const query = byId("query");
  const results = byId("results");
  let k = FIRST;

  const run = latest(async (signal) => {
    const chosen = index();
    const text = query.value.trim();
    if (!chosen || !text) {
      show([], "");
      byId("more").hidden = true;
      return;
    }
    results.setAttribute("aria-busy", "true");
    // A dense index has no terms to explain with.
    const parts = chosen.encoder.name === "dense" ? [] : ["text", "explain"];
    const body = { query: text, k, ...(parts.length ? { with: parts } : {}) };
    const answer = await ask(`v1/indexes/${encodeURIComponent(chosen.name)}/search`, body, signal);
    const [{ hits, unknown_terms: unknown, partial }] = answer.results;
    const shareOf = await shareOfWords(chosen, hits.flatMap(textsOf), termsOf(hits), signal);
    if (signal.aborted) return;
    const most = Math.max(...hits.flatMap((hit) => (hit.explanation ?? []).map((term) => term.share)), 1e-9);
    show(
      hits.map((hit) => item(hit, shareOf, most, () => compare(query.value, documentText(hit)))),
      told(hits.length, answer.took_ms, unknown, partial),
    );
    byId("more").hidden = hits.length < k || k >= MOST;
  }, failed);

  function show(items, status) {
    results.replaceChildren(...items);
    results.removeAttribute("aria-busy");
    byId("search-status").textContent = status;
  }

  function failed(message) {
    byId("search-error").textContent = message;
    if (message) show([], "");
  }

  const typed = settled(run, WAIT_MS);
  query.addEventListener("input", () => {
    k = FIRST;
    typed();
  });
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("more").addEventListener("click", async () => {
    const before = results.children.length;
    k = Math.min(MOST, k + FIRST);
    await run();
    results.children[before]?.querySelector("button")?.focus();
  });
  return run;
}

const documentText = ({ document: { title = "", text = "" } }) => (title && text ? `${title} ${text}` : title || text);

const textsOf = ({ document }) => [document?.title ?? "", document?.text ?? ""];

const termsOf = (hits) => hits.flatMap((hit) => (hit.explanation ?? []).map((term) => term.token));

function told(found, took_ms, unknown, partial) {
  const parts = [`${found ? count(found, "result") : "Nothing found"}, ${took_ms.toFixed(1)} ms`];
  if (unknown.length) parts.push(`not in the vocabulary: ${unknown.join(", ")}`);
  if (partial) parts.push("not all of the index was searched");
  return parts.join("; ");
}

function item(hit, shareOf, most, compare) {
  const terms = hit.explanation ?? [];
  const shares = new Map(terms.map(({ token, share }) => [token, share]));
  const title = hit.document?.title || hit.id;
  const text = hit.document?.text ?? "";
  const ofTitle = hit.document?.title ? markedWords(title, shares, shareOf) : [];
  const ofText = markedWords(text, shares, shareOf);
  const about = element("p", { class: "about" }, `${hit.id} · score `);
  about.append(element("span", { class: "number" }, number(hit.score)));
  if (text || hit.document?.title) {
    const button = element("button", { type: "button", "aria-label": `Compare the query with ${title}` }, "Compare");
    button.addEventListener("click", compare);
    about.append(" ", button);
  }
  return element(
    "li",
    { class: "hit" },
    element(
      "div",
      {},
      element("h3", {}, ...marked(title, ofTitle, undefined, most)),
      element("p", {}, ...marked(text, ofText, excerpt(text, ofText), most)),
      about,
    ),
    ...(terms.length ? [sharesTable(terms, most)] : []),
  );
}

function sharesTable(terms, most) {
  const rows = terms.slice(0, TERMS).map(({ token, share }) => row(token, share));
  const rest = terms.slice(TERMS);
  if (rest.length) rows.push(row(`${rest.length} more`, rest.reduce((sum, { share }) => sum + share, 0), ""));
  return element(
    "table",
    { class: "shares" },
    element("caption", { class: "unseen" }, "What each term adds to the score"),
    ...rows,
  );

  function row(name, share, kind = "term") {
    return element(
      "tr",
      {},
      element("th", { scope: "row", class: kind, title: name }, name),
      element("td", { class: "drawn" }, bar(Math.min(1, share / most))),
      element("td", { class: "number" }, number(share)),
    );
  }
}
