// Which words of a text stand for which terms.

import { ask } from "./api.js";
import { element } from "./elements.js";

const WORD =
  /[\p{Script=Han}\p{Script=Hiragana}]|[^\P{L}\p{Script=Han}\p{Script=Hiragana}](?:[\p{M}\p{N}_]|[^\P{L}\p{Script=Han}\p{Script=Hiragana}]|['’.](?=\p{L}))*|\p{N}(?:[\p{L}\p{N}_]|[.,](?=\p{N}))*/gu;

/** Most texts of one request to encode, within what any server is likely to take. */
const AT_ONCE = 64;

const EXCERPT = 320;

/** By the fingerprint of an encoder, the terms of each word that it was asked for. */
const analysed = new Map();

/**
 * A function from a lower-case word and a map of shares by term to the word's share, or 0.
 *
 * BM25 analyses each word alone, so the server is asked which terms a word becomes. Other encoders need not say
 * which word a term comes from: there a word counts if it can be put together from the terms.
 */
export async function shareOfWords(index, texts, terms, signal) {
  if (index.encoder.name !== "bm25") return spelledShare;
  const known = analysed.get(index.encoder.fingerprint) ?? new Map();
  analysed.set(index.encoder.fingerprint, known);
  const beginnings = new Set(terms.map((term) => term.slice(0, 2)));
  const words = new Set();
  for (const text of texts) {
    for (const [word] of text.toLowerCase().matchAll(WORD)) {
      // Stemming changes ends only, so most words need not be asked for.
      if (!known.has(word) && (word.length < 3 || beginnings.has(word.slice(0, 2)))) words.add(word);
    }
  }
  const asked = [...words];
  for (let from = 0; from < asked.length; from += AT_ONCE) {
    const input = asked.slice(from, from + AT_ONCE);
    const { data } = await ask("v1/encode", { model: index.name, input, return_tokens: true }, signal);
    data.forEach(({ tokens }, place) => known.set(input[place], tokens));
  }
  return (word, shares) =>
    (known.get(word) ?? []).reduce((sum, term) => sum + (shares.get(term) ?? 0), 0);
}

/** The share of a word that terms of a subword vocabulary spell from its first letter to its last. */
export function spelledShare(word, shares) {
  const folded = word.normalize("NFD").replace(/\p{M}/gu, "");
  return Math.max(spelled(word, shares), folded === word ? 0 : spelled(folded, shares));
}

function spelled(word, shares) {
  // WordPiece marks what goes on in a word, SentencePiece and byte-level BPE what begins one.
  const marked = [...shares.keys()].some((term) => /^[▁Ġ]/u.test(term));
  const find = (part, isFirst) => {
    const names = marked ? (isFirst ? [`▁${part}`, `Ġ${part}`] : [part]) : [isFirst ? part : `##${part}`];
    return names.find((name) => shares.has(name));
  };
  let sum = 0;
  for (let from = 0; from < word.length; ) {
    let to = word.length;
    while (to > from && find(word.slice(from, to), from === 0) === undefined) to -= 1;
    if (to === from) return 0;
    sum += shares.get(find(word.slice(from, to), from === 0));
    from = to;
  }
  return sum;
}

/** The words of a text that have a share, in their order. */
export function markedWords(text, shares, shareOf) {
  const found = [];
  for (const match of text.matchAll(WORD)) {
    const share = shareOf(match[0].toLowerCase(), shares);
    if (share > 0) found.push({ from: match.index, to: match.index + match[0].length, share });
  }
  return found;
}

/** Where the part of a text begins and ends that says most: each share counts once. */
export function excerpt(text, marks) {
  if (text.length <= EXCERPT) return { from: 0, to: text.length };
  let best = { from: 0, worth: 0 };
  marks.forEach(({ from }, first) => {
    const seen = new Map();
    for (const mark of marks.slice(first)) {
      if (mark.to > from + EXCERPT * 0.85) break;
      seen.set(text.slice(mark.from, mark.to).toLowerCase(), mark.share);
    }
    const worth = [...seen.values()].reduce((sum, share) => sum + share, 0);
    if (worth > best.worth) best = { from, worth };
  });
  const before = best.from < EXCERPT * 0.5 ? 0 : text.lastIndexOf(" ", best.from - EXCERPT * 0.1) + 1;
  const after = text.lastIndexOf(" ", before + EXCERPT);
  return { from: before, to: text.length - before <= EXCERPT ? text.length : after > before ? after : before + EXCERPT };
}

/** Nodes of a part of a text, its marks in `mark` elements as strong as their share of `most`. */
export function marked(text, marks, { from, to } = { from: 0, to: text.length }, most = 1) {
  const nodes = from > 0 ? ["… "] : [];
  let at = from;
  for (const mark of marks) {
    if (mark.from < at || mark.to > to) continue;
    nodes.push(text.slice(at, mark.from));
    nodes.push(element("mark", { "--share": Math.min(1, mark.share / most) }, text.slice(mark.from, mark.to)));
    at = mark.to;
  }
  nodes.push(text.slice(at, to));
  if (to < text.length) nodes.push(" …");
  return nodes;
}
