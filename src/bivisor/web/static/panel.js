// The details beside the picture: of one thing, kept up to date; a console; a screen; the store.

import { make, set } from "./dom.js";
import { openConsole } from "./console.js";
import { openScreen } from "./screen.js";
import { showTraffic } from "./traffic.js";

const panel = document.getElementById("panel");
const title = document.getElementById("panel-title");
const body = document.getElementById("panel-body");
const STATES = ["Unknown", "Initialising", "InitWait", "Initialised", "Connected", "Closing", "Closed", "Reconfiguring", "Reconfigured"];

let shown = null; // what `refreshPanel` keeps up to date
let newest = null;
let end = () => {};
let cameFrom = null;

/** Show `parts` under a heading. `finish` is called when something else is shown. */
export function fillPanel(heading, ...parts) {
  end();
  end = () => {};
  shown = null;
  if (panel.hidden) cameFrom = document.activeElement;
  panel.hidden = false;
  panel.classList.remove("wide");
  document.body.classList.add("with-panel");
  title.textContent = heading;
  body.replaceChildren(...parts);
  title.focus();
}

export function closePanel() {
  if (panel.hidden) return;
  end();
  end = () => {};
  shown = null;
  body.replaceChildren();
  panel.hidden = true;
  document.body.classList.remove("with-panel");
  if (cameFrom?.isConnected) cameFrom.focus();
}

export function showConsole(guest) {
  const place = make("div", { class: "tty" });
  fillPanel(`Console of ${guest.name}`, place);
  panel.classList.add("wide");
  end = openConsole(place, guest.console ?? `/console/${encodeURIComponent(guest.domid)}`);
}

export function showScreen(guest) {
  const place = make("div", { class: "screen" });
  fillPanel(`Screen of ${guest.name}`, place);
  panel.classList.add("wide");
  end = openScreen(place, guest.screen);
}

/** Show what `thing` names: a ring, a channel, the grants of a domain, the watches. */
export function showThing(thing) {
  const facts = make("div");
  const traffic = make("div");
  fillPanel("", facts, traffic);
  shown = { thing, facts };
  refreshPanel(newest);
  const wanted = newest?.xen ? wantedFor(newest.xen, thing) : null;
  if (wanted) end = showTraffic(traffic, "xen", wanted);
}

/** The events that pass at a thing. */
function wantedFor(xen, { type, id }) {
  if (type === "channel") {
    const { domid, port, remote, remote_port: far } = xen.channels.find((channel) => channel.id === id) ?? {};
    const match = [{ domain: domid, from_port: port }, { to: domid, port }];
    if (far !== null) match.push({ domain: remote, from_port: far }, { to: remote, port: far });
    return { kinds: ["event"], match };
  }
  if (type !== "ring") return null;
  const { kind, frontend, device } = xen.rings.find((ring) => ring.id === id) ?? {};
  if (kind === "xenstore") return { kinds: ["xenstore"], domains: [frontend] };
  const name = kind === "console" ? `console/${frontend}` : `${kind}/${frontend}/${device}`;
  return { kinds: ["ring"], domains: [frontend], match: [{ device: name }] };
}

export function refreshPanel(state) {
  newest = state;
  if (!shown || !state) return;
  const found = state.xen ? DESCRIBE[shown.thing.type](state.xen, shown.thing) : null;
  if (!found) {
    set(title, { text: "It is gone" });
    shown.facts.replaceChildren(make("p", { text: "What was shown here is not there any more." }));
    shown = null;
    return;
  }
  set(title, { text: found.heading });
  const words = JSON.stringify(found.rows);
  if (shown.words === words) return;
  shown.words = words;
  shown.facts.replaceChildren(found.columns ? table(found.columns, found.rows) : pairs(found.rows));
}

const DESCRIBE = {
  ring(xen, { id }) {
    const ring = xen.rings.find((each) => each.id === id);
    if (!ring) return null;
    const rows = [
      ["Front-end", nameOf(xen, ring.frontend)],
      ["Back-end", nameOf(xen, ring.backend)],
      ["State", ring.state === null ? "open" : `${ring.state} ${STATES[ring.state] ?? ""}`],
      ["Shared page", ring.gfn === null ? ring.refs.map((ref) => `grant ${ref}`).join(", ") || "none yet" : `frame ${ring.gfn.toString(16)}`],
      ["Event channel", ring.port === null ? "none yet" : `port ${ring.port}`],
    ];
    if (ring.path) rows.push(["In the store", ring.path]);
    if (ring.target) rows.push([ring.kind === "vbd" ? "Image" : "Network", ring.target]);
    return { heading: `${KINDS[ring.kind]} ${ring.name} of ${nameOf(xen, ring.frontend)}`, rows };
  },
  channel(xen, { id }) {
    const channel = xen.channels.find((each) => each.id === id);
    if (!channel) return null;
    const rows = [["Kind", channel.kind], ["Port", `${channel.port} of ${nameOf(xen, channel.domid)}`]];
    if (channel.remote !== null) {
      const port = channel.remote_port === null ? "no port yet" : `port ${channel.remote_port}`;
      rows.push(["Other end", `${port} of ${nameOf(xen, channel.remote)}`]);
    }
    if (channel.virq) rows.push(["Virtual interrupt", channel.virq]);
    rows.push(["Told", `vCPU ${channel.vcpu}`]);
    return { heading: `Event channel ${channel.domid}:${channel.port}`, rows };
  },
  grants(xen, { domid }) {
    if (!xen.domains.some((domain) => domain.domid === domid)) return null;
    const rows = xen.grants
      .filter((grant) => grant.granter === domid)
      .map((grant) => [grant.ref, nameOf(xen, grant.grantee), grant.gfn.toString(16), grant.writers ? "read, write" : "read"]);
    return { heading: `Mapped grants of ${nameOf(xen, domid)}`, columns: ["Reference", "Mapped by", "Frame", "For"], rows };
  },
  watches(xen) {
    const rows = xen.watches.map((watch) => [nameOf(xen, watch.domid), watch.path, watch.token]);
    return { heading: "Watches of the store", columns: ["Domain", "Path", "Token"], rows };
  },
};
const KINDS = { vbd: "Disk", vif: "Network", console: "Console:", xenstore: "Store:" };

function nameOf(xen, domid) {
  return xen.domains.find((domain) => domain.domid === domid)?.name ?? `domain ${domid}`;
}

function pairs(rows) {
  const list = make("dl");
  for (const [name, value] of rows) list.append(make("dt", { text: name }), make("dd", { text: String(value) }));
  return list;
}

function table(columns, rows) {
  const head = make("tr", {}, ...columns.map((text) => make("th", { scope: "col", text })));
  const lines = rows.map((row) => make("tr", {}, ...row.map((value) => make("td", { text: String(value) }))));
  return make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The list" },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines)));
}
