// Rings and event channels as lines: rings above the boxes, where memory is shared; channels below, through Xen.

import { make, press, set, sync } from "./dom.js";

const ARC = 34;
const STEP = 5;
const KIND_WORDS = { vbd: "disk", vif: "network", console: "console", xenstore: "store" };

export function drawWires(xen, show) {
  const svg = document.getElementById("xen-wires");
  const stage = document.getElementById("xen-stage");
  const origin = stage.getBoundingClientRect();
  set(svg, { width: stage.scrollWidth, height: stage.scrollHeight });
  const at = placesIn(stage, origin);
  const rings = xen.rings.map((ring, index) => ({ ...ring, what: "ring", line: ringLine(ring, index, at) }));
  const channels = xen.channels
    .filter((channel) => channel.kind === "interdomain")
    .map((channel, index) => ({ ...channel, what: "channel", line: channelLine(channel, index, at) }));
  sync(svg, [...channels, ...rings], (wire) => create(wire, show), update);
}

function create(wire, show) {
  const group = make("svg:g", { class: `wire ${wire.what} ${wire.kind}`, role: "button", tabindex: 0 });
  group.append(make("svg:path", { class: "touch" }), make("svg:path", { class: "line" }));
  return press(group, () => show({ type: wire.what, id: wire.id }));
}

function update(group, wire) {
  for (const path of group.children) set(path, { d: wire.line });
  set(group, { "aria-label": words(wire), "data-state": wire.state ?? null });
}

function words(wire) {
  return wire.what === "ring"
    ? `Ring: ${KIND_WORDS[wire.kind]} ${wire.name} of domain ${wire.frontend}, from its front-end to Dom0`
    : `Event channel: port ${wire.port} of domain ${wire.domid} to port ${wire.remote_port} of domain ${wire.remote}`;
}

/** Where ends and ports are within the stage, by their names; and where the floor is. */
function placesIn(stage, origin) {
  const ends = new Map();
  const within = (rectangle) => ({
    x: rectangle.left - origin.left + rectangle.width / 2,
    left: rectangle.left - origin.left,
    right: rectangle.right - origin.left,
    top: rectangle.top - origin.top,
    bottom: rectangle.bottom - origin.top,
  });
  const row = (element) => within(element.closest(".box").getBoundingClientRect()).bottom;
  for (const chip of stage.querySelectorAll(".end")) {
    const isBack = chip.closest(".dom0") !== null;
    ends.set(`${isBack ? "back" : "front"} ${chip.dataset.ring}`, { ...within(chip.getBoundingClientRect()), row: row(chip) });
  }
  for (const dot of stage.querySelectorAll(".port"))
    ends.set(`port ${dot.dataset.port}`, { ...within(dot.getBoundingClientRect()), row: row(dot) });
  return { ends, floor: within(document.getElementById("hypervisor").getBoundingClientRect()), width: stage.clientWidth };
}

function ringLine(ring, index, at) {
  const back = at.ends.get(`back ${ring.id}`);
  const front = at.ends.get(`front ${ring.id}`);
  if (!back || !front) return "M0 0";
  if (Math.abs(back.row - front.row) < 60) {
    const height = Math.max(2, Math.min(back.top, front.top) - ARC - (index % 6) * STEP);
    return `M${back.x} ${back.top} C${back.x} ${height} ${front.x} ${height} ${front.x} ${front.top}`;
  }
  const gutter = 3 + (index % 6) * 3; // boxes are below one another: along the left edge
  return `M${back.left} ${back.top + 8} H${gutter} V${front.top + 8} H${front.left}`;
}

function channelLine(channel, index, at) {
  const one = at.ends.get(`port ${channel.domid}.${channel.port}`);
  const other = at.ends.get(`port ${channel.remote}.${channel.remote_port}`);
  if (!one || !other) return "M0 0";
  if (Math.abs(one.row - other.row) < 60) {
    const depth = at.floor.top + 6 + (index % 8) * 4;
    return `M${one.x} ${one.bottom} V${depth} H${other.x} V${other.bottom}`;
  }
  const gutter = at.width - 3 - (index % 6) * 3;
  const depth = (end) => end.bottom + 3 + (index % 3) * 2;
  return `M${one.x} ${one.bottom} V${depth(one)} H${gutter} V${depth(other)} H${other.x} V${other.bottom}`;
}
