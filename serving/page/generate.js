// Texts from a model, token by token, and the experts that each went through.

import { ask, stream } from "./api.js";
import { byId, count, element, latest, rove } from "./elements.js";
import { HeatMap, hueOf } from "./heat_map.js";

const POLL_MS = 2000;

/** Start the view; `models` are as the server describes them, `isShown` says whether the view is seen. */
export function startGenerate(models, isShown) {
  const output = byId("output");
  const heatMap = new HeatMap();
  let tokens = [];
  let layers = [];
  let counts = [];
  let stopped = false;

  byId("model").append(...models.map(({ id }) => element("option", { value: id }, id)));
  byId("model").addEventListener("change", bound);
  bound();

  /** A prompt and what follows it must be within the context. */
  function bound() {
    const { context } = models.find(({ id }) => id === byId("model").value);
    const field = byId("max-tokens");
    field.max = context;
    field.value = Math.min(Number(field.value) || 128, Math.max(1, Math.floor(context / 2)));
  }

  const run = latest(async (signal) => {
    const model = byId("model").value;
    const prompt = byId("prompt").value;
    begin(prompt);
    const body = {
      model,
      prompt,
      max_tokens: Number(byId("max-tokens").value),
      temperature: Number(byId("temperature").value),
      stream: true,
      return_routing: true,
    };
    const began = performance.now();
    let finish = null;
    try {
      for await (const { choices } of stream("v1/completions", body, signal)) {
        for (const choice of choices) {
          await add(choice, model, signal);
          finish = choice.finish_reason ?? finish;
        }
        byId("generate-status").textContent = `Generating: ${count(tokens.length, "token")}`;
      }
    } finally {
      if (!signal.aborted || stopped) end(finish, (performance.now() - began) / 1000);
    }
  }, failed);

  function begin(prompt) {
    stopped = false;
    tokens = [];
    layers = counts = [];
    output.hidden = false;
    output.replaceChildren(element("span", { class: "prompt" }, prompt));
    byId("routing").hidden = true;
    byId("token-detail").textContent = byId("cell-detail").textContent = "";
    byId("generate-status").textContent = "Generating";
    byId("generate-error").textContent = "";
    byId("stop").disabled = false;
    output.setAttribute("aria-busy", "true");
  }

  function end(finish, seconds) {
    byId("stop").disabled = true;
    output.removeAttribute("aria-busy");
    const ends = { length: "ended at the limit", stop: "ended by the model" };
    const why = stopped ? "stopped" : (ends[finish] ?? "broken off");
    const speed = seconds > 0 ? `, ${(tokens.length / seconds).toFixed(1)} a second` : "";
    byId("generate-status").textContent = `${count(tokens.length, "token")}${speed}; ${why}`;
  }

  function failed(message) {
    byId("generate-error").textContent = message;
    if (message && !tokens.length) {
      output.hidden = true;
      byId("generate-status").textContent = "";
    }
  }

  /** One piece: a token, and a text that may be of several tokens or of none yet. */
  async function add(choice, model, signal) {
    const experts = choice.routing?.experts[0] ?? null;
    const isToken = choice.routing?.tokens.length > 0;
    if (isToken) {
      const name = choice.routing.tokens[0];
      const span = element("span", { class: "token", tabindex: tokens.length ? -1 : 0 }, choice.text);
      tokens.push({ span, name, experts });
      output.append(span);
    } else if (choice.text) {
      output.append(choice.text);
    }
    if (!isToken || !experts?.length) return;
    if (!layers.length) await learn(experts, model, signal);
    if (experts.some((of, layer) => Math.max(...of) >= counts[layer].length)) grow(experts);
    experts.forEach((of, layer) => of.forEach((expert) => (counts[layer][expert] += 1)));
    if (byId("counted").value === "text") heatMap.set(counts);
    colour(tokens.at(-1));
  }

  /** The names and sizes of the layers. */
  async function learn(experts, model, signal) {
    const found = await routing(model, 600, signal);
    layers = experts.map((_, layer) => found[layer]?.layer ?? `layer ${layer}`);
    counts = experts.map((of, layer) => new Array(found[layer]?.experts ?? Math.max(...of) + 1).fill(0));
    const chosen = byId("layer").value;
    byId("layer").replaceChildren(...layers.map((name, layer) => element("option", { value: layer }, short(name))));
    byId("layer").value = chosen && chosen < layers.length ? chosen : layers.length - 1;
    byId("routing").hidden = false;
    heatMap.reset(layers.map(short), counts.map((of) => of.length));
    poll();
  }

  function grow(experts) {
    experts.forEach((of, layer) => {
      while (counts[layer].length <= Math.max(...of)) counts[layer].push(0);
    });
    heatMap.reset(layers.map(short), counts.map((of) => of.length));
  }

  function colour({ span, experts }) {
    const first = experts?.[byId("layer").value]?.[0];
    span.classList.toggle("routed", first !== undefined);
    if (first !== undefined) span.style.setProperty("--hue", hueOf(first));
  }

  function tell(event) {
    const place = tokens.findIndex(({ span }) => span === event.target);
    if (place < 0) return;
    const { name, experts } = tokens[place];
    const layer = byId("layer").value;
    const others = experts?.[layer] ?? [];
    const told = others.length ? `, ${short(layers[layer])}: ${others.length > 1 ? "experts" : "expert"} ${others.join(", ")}` : "";
    byId("token-detail").textContent = `Token ${place + 1} ${JSON.stringify(name)}${told}`;
  }

  const poll = latest(async (signal) => {
    while (!signal.aborted && byId("counted").value === "minute" && layers.length) {
      if (isShown() && !document.hidden) {
        const found = await routing(byId("model").value, 60, signal);
        const fits = found.length === counts.length && found.every((of, layer) => of.load.length === counts[layer].length);
        if (signal.aborted) return;
        heatMap.set(fits ? found.map((of) => of.load) : counts.map((of) => of.map(() => 0)));
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }, failed);

  byId("counted").addEventListener("change", () => {
    if (byId("counted").value === "text") heatMap.set(counts);
    poll();
  });
  byId("layer").addEventListener("change", () => tokens.forEach(colour));
  for (const kind of ["focusin", "mouseover"]) output.addEventListener(kind, tell);
  rove(output, ".token");
  byId("generate-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("stop").addEventListener("click", () => {
    stopped = true;
    run.stop();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("generate-form").requestSubmit();
  });
}

async function routing(model, window_s, signal) {
  const path = `v1/models/${encodeURIComponent(model)}/routing?window_s=${window_s}`;
  return (await ask(path, undefined, signal)).layers;
}

/** "layer 3" of "model.layers.3.mlp.gate". */
function short(name) {
  const found = /\blayers?\.(\d+)/.exec(name);
  return found ? `layer ${found[1]}` : name;
}
