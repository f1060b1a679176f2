// Asking for a key, which is kept in memory only.

import { byId } from "./elements.js";

let asking = null;

/** The key that is given, or null; requests that ask at once share one dialog. */
export function askForKey(reason) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const input = byId("key");
    let given = null;
    byId("key-reason").textContent = reason;
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      given = input.value;
      dialog.close();
    };
    byId("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      input.value = "";
      asking = null;
      resolve(given);
    };
    dialog.showModal();
    input.focus();
  });
  return asking;
}
