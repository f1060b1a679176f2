// Making elements. Whatever comes from the server becomes text nodes and attributes, never markup.

/** An element; properties that begin with -- are set as CSS properties, which inline style attributes could not be. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("--")) made.style.setProperty(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

const COUNTS = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A weight, score or share, with digits enough to tell it from others. */
export const number = (value) => value.toFixed(Math.abs(value) < 10 ? 3 : Math.abs(value) < 100 ? 2 : 1);

export const count = (value, one, many = `${one}s`) => `${COUNTS.format(value)} ${value === 1 ? one : many}`;

/** A bar as long as a share, 0 to 1, of its room; the number beside it says the same. */
export const bar = (share) => element("span", { class: "bar", "--share": share, "aria-hidden": "true" });

/** Calls `work` when `wait_ms` have gone by without another call. */
export function settled(work, wait_ms) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, wait_ms);
  };
}

/**
 * Work of which only the latest run counts: a new one, or `stop`, aborts the one before.
 * `work` is given a signal; `failed` is told a sentence when it fails, and "" when it does not.
 */
export function latest(work, failed) {
  let running = new AbortController();
  const run = async () => {
    running.abort();
    const { signal } = (running = new AbortController());
    try {
      await work(signal);
      if (!signal.aborted) failed("");
    } catch (error) {
      if (!signal.aborted) failed(error.message);
    }
  };
  run.stop = () => running.abort();
  return run;
}

/** Arrow keys move the focus among elements of a container, one of which is in the order of Tab. */
export function rove(container, selector, columns = () => 1) {
  container.addEventListener("keydown", (event) => {
    const all = [...container.querySelectorAll(selector)];
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
    const from = all.indexOf(event.target);
    if (from < 0 || !(event.key in steps)) return;
    event.preventDefault();
    const to = all[from + steps[event.key]];
    if (to === undefined) return;
    event.target.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  });
}
