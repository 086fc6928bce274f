// Elements: made, and kept the same from one picture to the next, so that focus and selection stay where they are.

/** An element. `attributes`: those that are functions listen, `text` is its text, null and false are left out. */
export function make(name, attributes = {}, ...children) {
  const element = name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.slice(4))
    : document.createElement(name);
  set(element, attributes);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set what is not so already. */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      element.addEventListener(name, value);
    } else if (name === "text") {
      if (element.textContent !== value) element.textContent = value;
    } else if (value === null || value === undefined || value === false) {
      element.removeAttribute(name);
    } else {
      const words = value === true ? "" : String(value);
      if (element.getAttribute(name) !== words) element.setAttribute(name, words);
    }
  }
  return element;
}

/** Have `parent` hold one element for each of `items`, by their `id`: `create(item)` once, `update(element, item)` always. */
export function sync(parent, items, create, update = () => {}) {
  const old = parent.kept ?? new Map();
  const kept = new Map();
  let next = parent.firstElementChild;
  for (const item of items) {
    let element = old.get(item.id);
    if (!element) {
      element = create(item);
      element.dataset.id = item.id;
    }
    old.delete(item.id);
    kept.set(item.id, element);
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
    update(element, item);
  }
  for (const element of old.values()) element.remove();
  parent.kept = kept;
}

/** Have `element` act as a button does: on a click, on Enter and on the space bar. */
export function press(element, act) {
  element.addEventListener("click", act);
  element.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      act(event);
    }
  });
  return element;
}

/** Bytes in a unit that a person reads. */
export function size(kib) {
  return kib >= 1 << 20 ? `${(kib / (1 << 20)).toFixed(1)} GiB` : kib >= 1024 ? `${Math.round(kib / 1024)} MiB` : `${kib} KiB`;
}
