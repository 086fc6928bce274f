// The tree of XenStore: a branch is asked for when it is opened.

import { make } from "./dom.js";
import { ask } from "./link.js";
import { fillPanel } from "./panel.js";

async function branch(path) {
  const nodes = await ask(`/store?path=${encodeURIComponent(path)}`);
  const list = make("ul", { class: "tree" });
  for (const node of nodes) {
    const below = path === "/" ? `/${node.name}` : `${path}/${node.name}`;
    const words = [make("span", { class: "node", text: node.name }), node.value ? make("code", { text: node.value }) : null];
    list.append(make("li", {}, node.below ? folder(below, words) : make("div", { class: "leaf" }, ...words.filter(Boolean))));
  }
  if (!nodes.length) list.append(make("li", { text: "nothing below" }));
  return list;
}

function folder(path, words) {
  const details = make("details", { "data-path": path }, make("summary", {}, ...words.filter(Boolean)));
  details.addEventListener("toggle", async () => {
    details.querySelector("ul")?.remove();
    if (details.open) details.append(await guarded(path));
  });
  return details;
}

async function guarded(path) {
  try {
    return await branch(path);
  } catch (error) {
    return make("ul", {}, make("li", { class: "wrong", text: error.message }));
  }
}

export async function showStore() {
  fillPanel("XenStore", make("p", { text: "What domains and tools tell each other. A branch is read when it is opened." }), await guarded("/"));
}
