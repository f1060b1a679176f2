// The sizes of an index.

import { ask } from "./api.js";
import { byId, element, latest, number } from "./elements.js";

const WHOLE = new Intl.NumberFormat("en");

const NAMES = {
  documents: "Documents",
  deleted: "Deleted",
  postings: "Postings",
  units_per_document: "Terms of a document",
  units: "Terms of the vocabulary",
  bytes: "Size on disk",
  bytes_per_posting: "Bytes of a posting",
  segments: "Segments",
  layouts: "Layouts",
  impacts: "Impacts",
  version: "Version",
  pending: "Not yet committed",
  fields: "Fields",
  store: "Kept of documents",
  encoder: "Encoder",
  fingerprint: "Fingerprint",
  calibration: "Calibration",
};

/** Start the view; `index` gives the chosen index. Returns what reads it anew. */
export function startStatistics(index) {
  const run = latest(
    async (signal) => {
      const chosen = index();
      if (!chosen) return;
      const found = await ask(`v1/indexes/${encodeURIComponent(chosen.name)}/stats`, undefined, signal);
      const shown = Object.entries(NAMES).filter(([name]) => name in found);
      byId("statistics").replaceChildren(
        ...shown.map(([name, label]) =>
          element("div", {}, element("dt", {}, label), element("dd", name === "fingerprint" ? { class: "long" } : {}, told(name, found[name]))),
        ),
      );
    },
    (message) => {
      byId("statistics-error").textContent = message;
      if (message) byId("statistics").replaceChildren();
    },
  );
  byId("statistics-again").addEventListener("click", run);
  return run;
}

function told(name, value) {
  if (name === "bytes") return size(value);
  if (name === "pending") return `${WHOLE.format(value.documents)} (${size(value.bytes)})`;
  if (typeof value === "number") return Number.isInteger(value) ? WHOLE.format(value) : number(value);
  if (Array.isArray(value)) return value.join(", ") || "nothing";
  if (value !== null && typeof value === "object") {
    return Object.entries(value).map(([key, each]) => `${key}: ${plain(each)}`).join(", ") || "none";
  }
  return String(value);
}

const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));

function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let place = 0;
  let value = bytes;
  while (value >= 1000 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${place ? value.toFixed(2) : value} ${units[place]}`;
}
