// How often each expert of each layer was chosen, as a table whose cells are as dark as they are busy.

import { byId, element, rove } from "./elements.js";

const WIDE = 16;

/** The hue that stands for an expert; neighbours are far apart. */
export const hueOf = (expert) => (expert * 137.508 + 250) % 360;

export class HeatMap {
  constructor() {
    this.table = byId("heat-map");
    this.counts = [];
    this.cells = [];
    this.isDrawing = false;
    rove(this.table, ".heat", () => this.counts[0]?.length ?? 1);
    for (const kind of ["focusin", "mouseover"]) {
      this.table.addEventListener(kind, (event) => this.tell(event.target.closest(".heat")));
    }
  }

  /** Begin anew with layers of so many experts, all at 0. */
  reset(names, experts) {
    const most = Math.max(0, ...experts);
    this.names = names;
    this.counts = experts.map((of) => new Array(of).fill(0));
    this.cells = this.counts.map((of, layer) => of.map((_, expert) => this.cell(layer, expert)));
    this.evenness = this.counts.map(() => element("td", { class: "evenness number" }));
    const isWide = most > WIDE;
    this.table.classList.toggle("many", isWide);
    const heads = Array.from({ length: most }, (_, expert) => {
      const label = element("span", isWide && expert % 8 ? { class: "unseen" } : {}, String(expert));
      return element("th", { scope: "col", class: "expert", "--hue": hueOf(expert) }, label);
    });
    this.table.replaceChildren(
      element("thead", {}, element("tr", {}, element("td"), ...heads, element("th", { scope: "col", class: "evenness" }, "Evenness"))),
      element(
        "tbody",
        {},
        ...this.cells.map((of, layer) =>
          element("tr", {}, element("th", { scope: "row" }, names[layer]), ...of, this.evenness[layer]),
        ),
      ),
    );
    if (this.cells[0]?.[0]) this.cells[0][0].tabIndex = 0;
    this.draw();
  }

  cell(layer, expert) {
    const made = element("td", { class: "heat", tabindex: -1, "data-layer": layer, "data-expert": expert });
    made.append(element("span", { class: "unseen" }, "0"));
    return made;
  }

  /** Show other counts, of the same shape. */
  set(counts) {
    this.counts = counts;
    this.draw();
  }

  /** At most once for each picture on the screen. */
  draw() {
    if (this.isDrawing) return;
    this.isDrawing = true;
    requestAnimationFrame(() => {
      this.isDrawing = false;
      this.counts.forEach((of, layer) => this.drawLayer(of, layer));
    });
  }

  drawLayer(counts, layer) {
    const most = Math.max(1, ...counts);
    counts.forEach((value, expert) => {
      const cell = this.cells[layer][expert];
      const text = String(value);
      cell.style.setProperty("--share", value / most);
      if (cell.firstChild.textContent !== text) cell.firstChild.textContent = text;
    });
    this.evenness[layer].textContent = evenness(counts).toFixed(2);
  }

  tell(cell) {
    if (!cell) return;
    const { layer, expert } = cell.dataset;
    const sum = this.counts[layer].reduce((all, value) => all + value, 0);
    const value = this.counts[layer][expert];
    const share = sum ? ` (${((100 * value) / sum).toFixed(1)} %)` : "";
    byId("cell-detail").textContent = `${this.names[layer]}, expert ${expert}: ${value} of ${sum} choices${share}`;
  }
}

/** The entropy of counts as a share of the highest one: 1 where all are the same. */
export function evenness(counts) {
  const sum = counts.reduce((all, value) => all + value, 0);
  if (!sum || counts.length < 2) return 1;
  const entropy = counts.reduce((all, value) => (value ? all - (value / sum) * Math.log(value / sum) : all), 0);
  return entropy / Math.log(counts.length);
}
