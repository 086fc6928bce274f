// Questions that wait for an answer, and errors that wait to be read: in the one <dialog> of the page.

import { make } from "./dom.js";

const dialog = document.getElementById("dialog");

/** Show `parts` under a heading, until a button closes it: the value of that button. */
export function converse(title, parts, buttons) {
  dialog.replaceChildren(make("h2", { id: "dialog-title", text: title }), ...parts, make("div", { class: "actions" }, ...buttons));
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** A button that closes the dialog with `value`. */
export function closing(text, value, kind = null) {
  return make("button", { type: "button", class: kind, text, click: () => dialog.close(value) });
}

/** Whether a person is sure. What ends something is never the button that has the focus. */
export async function confirmThat(title, words, yes) {
  const no = closing("Cancel", "no");
  const answer = converse(title, [make("p", { text: words })], [no, closing(yes, "yes", "danger")]);
  no.focus();
  return (await answer) === "yes";
}

/** Say what went wrong. */
export function complain(error) {
  return converse("That could not be done", [make("p", { role: "alert", text: error.message })], [closing("Close", "")]);
}
