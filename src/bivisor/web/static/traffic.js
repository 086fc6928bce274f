// What passes at a ring or a channel: the newest events of it, as long as they are looked at, and how many there were.

import { make, set } from "./dom.js";
import { follow } from "./link.js";

const ROWS = 40;
const RATE_MS = 1000;

/** Show it in `place`: `whose` events ("xen", or a machine), and which of them are `wanted`. Returns what ends it. */
export function showTraffic(place, whose, wanted) {
  const rate = make("p", { class: "rate", text: "beginning to listen …" });
  const list = make("ol", { class: "events", "aria-label": "The newest, last" });
  const hold = make("button", { type: "button", text: "Hold still", "aria-pressed": "false" });
  let isHeld = false;
  hold.addEventListener("click", () => {
    isHeld = !isHeld;
    set(hold, { "aria-pressed": String(isHeld), text: isHeld ? "Go on" : "Hold still" });
  });
  place.append(make("div", { class: "actions" }, make("h3", { text: "What passes" }), hold), rate, list);
  let began = null;
  let recent = [];
  const total = new Map();
  const hear = (message) => {
    if (message.events.length === 0) {
      rate.textContent = total.size === 0 ? "nothing has passed yet" : "nothing has passed since the connection was lost";
      return;
    }
    const now = performance.now();
    let count = 0;
    for (const [name, times] of Object.entries(message.counts)) {
      total.set(name, (total.get(name) ?? 0) + times);
      count += times;
    }
    recent.push([now, count]);
    recent = recent.filter(([when]) => now - when < RATE_MS);
    if (isHeld) return;
    began ??= message.events[0].time;
    const second = recent.reduce((sum, [, times]) => sum + times, 0);
    const names = [...total].map(([name, times]) => `${name} ${times}`).join(", ");
    rate.textContent = `${second} a second: ${names}`;
    const fresh = message.events.slice(-ROWS).map((event) => row(event, began));
    list.replaceChildren(...[...list.children].slice(fresh.length - ROWS || ROWS), ...fresh);
  };
  return follow(`/events/${whose}?wanted=${encodeURIComponent(JSON.stringify(wanted))}`, hear, (words) => {
    if (words !== "live") rate.textContent = words;
  });
}

function row(event, began) {
  const at = ((event.time - began) / 1e9).toFixed(6);
  return make("li", { class: event.end ?? event.kind, text: `${at} ${describe(event)}` });
}

function describe(event) {
  switch (event.kind) {
    case "ring": {
      const parts = [event.end === "request" ? "→" : "←", event.op, `#${event.ident}`];
      if (event.sector >= 0) parts.push(`sector ${event.sector}`);
      if (event.size) parts.push(`${event.size} bytes`);
      if (event.end === "response") parts.push(event.status === 0 ? "ok" : `status ${event.status}`);
      return parts.join(" ");
    }
    case "event":
      return `${event.cause}: domain ${event.domain} port ${event.from_port} → domain ${event.to} port ${event.port}`;
    case "xenstore":
      return `${event.op} ${event.path}${event.value ? ` = ${event.value}` : ""}${event.error ? ` (errno ${event.error})` : ""}`;
    case "exit":
      return `vCPU ${event.vcpu} ${event.reason} ${event.device} ${event.address.toString(16)} ${(event.duration / 1000).toFixed(1)} µs`;
    case "hypercall":
      return `domain ${event.domain} ${event.name}(${Object.entries(event.details).map(([name, value]) => `${name} ${value}`).join(", ")}) = ${event.result}`;
    default:
      return JSON.stringify(event);
  }
}
