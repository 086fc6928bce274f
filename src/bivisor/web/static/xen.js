// The hypervisor architecture: Dom0 and the DomUs as boxes that stand on Xen, and what is between them as wires.

import { make, press, set, size, sync } from "./dom.js";
import { order } from "./link.js";
import { confirmThat, complain } from "./dialogs.js";
import { showConsole, showScreen, showThing } from "./panel.js";
import { drawWires } from "./wires.js";

const STATES = { r: "running", b: "idle", p: "paused", s: "shut down", c: "crashed", d: "dying" };
const KINDS = [
  ["vbd", "disk"],
  ["vif", "network"],
  ["console", "console"],
  ["xenstore", "store"],
  ["channel", "event channel"],
  ["grant", "granted page, mapped"],
  ["watch", "store watch"],
];

/** What the letters of `xl list` say, in a word. */
export function stateOf(domain) {
  for (const letter of "dcspbr") if (domain.state.includes(letter)) return STATES[letter];
  return "ready";
}

export function drawXen(state) {
  const xen = state.xen;
  document.getElementById("xen-stage").hidden = !xen;
  const none = document.getElementById("xen-none");
  none.hidden = Boolean(xen);
  drawLegend(Boolean(xen));
  if (!xen) {
    none.textContent = state.xen_error || "No Xen host runs.";
    return;
  }
  document.getElementById("xen-engine").textContent = `engine ${xen.engine}`;
  const parts = xen.domains.map((domain) => ({
    ...domain,
    id: `domain-${domain.domid}`,
    screen: domain.screen ? `/screen/${domain.domid}` : null,
    ...belongings(xen, domain.domid),
  }));
  sync(document.getElementById("domains"), parts, createDomain, updateDomain);
  drawWires(xen, showThing);
}

function belongings(xen, domid) {
  return {
    ends: xen.rings.filter((ring) => (domid === 0 ? ring.backend === 0 : ring.frontend === domid)),
    ports: xen.channels.flatMap((channel) => portsOf(channel, domid)),
    grants: xen.grants.filter((grant) => grant.granter === domid),
    watches: xen.watches.filter((watch) => watch.domid === domid),
    all: domid === 0 ? xen.watches : [],
  };
}

function portsOf(channel, domid) {
  const ports = [];
  if (channel.domid === domid) ports.push({ id: `port-${domid}.${channel.port}`, port: channel.port, channel });
  if (channel.kind === "interdomain" && channel.remote === domid) {
    ports.push({ id: `port-${domid}.${channel.remote_port}`, port: channel.remote_port, channel });
  }
  return ports;
}

function createDomain(domain) {
  const isDom0 = domain.domid === 0;
  const box = make("article", { class: `box domain ${isDom0 ? "dom0" : "domu"}`, "aria-labelledby": `name-${domain.domid}` });
  box.append(
    make("div", { class: "ends", role: "group", "aria-label": isDom0 ? "Back-ends" : "Front-ends" }),
    make("div", { class: "head" }, make("h3", { id: `name-${domain.domid}` }), make("span", { class: "state" })),
    make("p", { class: "facts" }),
    make("ul", { class: "vcpus", "aria-label": "Virtual processors" }),
  );
  if (isDom0) {
    box.append(
      make("div", { class: "store" },
        make("h4", { text: "XenStore" }),
        make("p", { class: "watch-count" }),
        press(make("div", { class: "watches", role: "button", tabindex: 0 }), () => showThing({ type: "watches" })),
      ),
    );
  } else {
    box.append(
      press(make("div", { class: "grants", role: "button", tabindex: 0 }), () => showThing({ type: "grants", domid: domain.domid })),
      make("div", { class: "actions", role: "group", "aria-label": "What can be done" }),
    );
  }
  box.append(make("div", { class: "ports", role: "group", "aria-label": "Event channel ports" }));
  return box;
}

function updateDomain(box, domain) {
  const find = (selector) => box.querySelector(selector);
  const isDom0 = domain.domid === 0;
  const state = stateOf(domain);
  set(find("h3"), { text: domain.name });
  set(find(".state"), { text: state, "data-state": state });
  const facts = isDom0
    ? `domain 0 · the control domain, in Python`
    : `domain ${domain.domid} · ${domain.type.toUpperCase()} · ${size(domain.memory_kib)} · ${domain.cpu_time_s.toFixed(1)} s of processor`;
  set(find(".facts"), { text: facts });
  const vcpus = domain.vcpus.map((vcpu) => ({ ...vcpu, id: `vcpu-${vcpu.domid}.${vcpu.vcpu}` }));
  sync(find(".vcpus"), vcpus, () => make("li"), (item, vcpu) => {
    const word = !vcpu.online ? "off" : vcpu.state[0] === "r" ? "running" : vcpu.state[1] === "b" ? "idle" : "ready";
    set(item, { text: `vCPU ${vcpu.vcpu} ${word}`, "data-state": word });
  });
  const ends = domain.ends.map((ring) => ({ ring, id: `end-${domain.domid}-${ring.id}` }));
  sync(find(".ends"), ends, (end) => make("span", { class: `end ${end.ring.kind}` }), (chip, { ring }) => {
    set(chip, { text: isDom0 ? `${ring.name}·${ring.frontend}` : ring.name, "data-ring": ring.id });
  });
  drawPorts(find(".ports"), domain);
  if (isDom0) {
    drawWatches(box, domain.all);
  } else {
    drawGrants(find(".grants"), domain);
    drawActions(find(".actions"), domain, state);
  }
}

function drawPorts(row, domain) {
  // A port that no wire leaves stands for its channel itself.
  sync(
    row,
    domain.ports.map((port) => (port.channel.kind === "interdomain" ? port : { ...port, id: port.channel.id })),
    ({ id, port, channel }) => {
      const dot = make("span", { class: `port ${channel.kind}`, "data-port": `${domain.domid}.${port}` });
      if (channel.kind !== "interdomain") {
        set(dot, { role: "button", tabindex: 0 });
        press(dot, () => showThing({ type: "channel", id }));
      }
      return dot;
    },
    (dot, { port, channel }) => {
      const words = { virq: `VIRQ ${channel.virq}`, ipi: "IPI", unbound: `waits for domain ${channel.remote}` }[channel.kind];
      set(dot, { title: words ? `port ${port}: ${words}` : `port ${port}`, text: String(port) });
      if (words) set(dot, { "aria-label": `Event channel port ${port}: ${words}` });
    },
  );
}

function drawWatches(box, watches) {
  set(box.querySelector(".watch-count"), { text: `${watches.length} watches` });
  const dots = box.querySelector(".watches");
  set(dots, { "aria-label": `${watches.length} watches: show them` });
  sync(dots, watches, (watch) => make("span", { class: "dot", title: `domain ${watch.domid}: ${watch.path}`, "data-domid": watch.domid }));
}

function drawGrants(strip, domain) {
  const words = `${domain.grants.length} of its pages are granted and mapped`;
  set(strip, { "aria-label": `${words}: show them`, title: words });
  sync(strip, domain.grants, () => make("span", { class: "cell" }), (cell, grant) => {
    set(cell, { title: `reference ${grant.ref} to domain ${grant.grantee}`, "data-writes": grant.writers > 0 });
  });
}

function drawActions(row, domain, state) {
  const name = String(domain.domid);
  row.domain = domain; // as it is when a button is pressed, not when it was made
  const act = (words, todo) => () => order(words, { domain: name }).then(todo, complain);
  const actions = [{ id: `console-${name}`, text: "Console", act: () => showConsole(row.domain) }];
  if (domain.screen) actions.push({ id: `screen-${name}`, text: "Screen", act: () => showScreen(row.domain) });
  if (state === "paused") actions.push({ id: `unpause-${name}`, text: "Go on", act: act("unpause") });
  else actions.push({ id: `pause-${name}`, text: "Pause", act: act("pause") });
  actions.push({ id: `shutdown-${name}`, text: "Shut down", act: act("shutdown") });
  actions.push({ id: `destroy-${name}`, text: "Destroy", danger: true, act: () => destroy(row.domain) });
  sync(
    row,
    actions,
    (action) => make("button", { type: "button", class: action.danger ? "danger" : null, text: action.text, click: action.act }),
    // A domain that is being made gets its name last, and may be given another.
    (button, action) => set(button, { "aria-label": `${action.text}: ${domain.name}` }),
  );
}

async function destroy(domain) {
  const sure = await confirmThat(
    `Destroy ${domain.name}?`,
    `Domain ${domain.domid} ends at once, as if its plug were pulled. What it has not written to its disks is lost.`,
    "Destroy",
  );
  if (sure) order("destroy", { domain: String(domain.domid) }).catch(complain);
}

function drawLegend(isShown) {
  const legend = document.getElementById("legend");
  legend.hidden = !isShown;
  sync(legend, KINDS.map(([kind, text]) => ({ id: `legend-${kind}`, kind, text })), ({ kind, text }) =>
    make("li", {}, make("span", { class: `mark ${kind}`, "aria-hidden": "true" }), text),
  );
}
