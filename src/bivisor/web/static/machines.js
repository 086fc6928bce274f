// The hosted architecture: each machine as a process with its threads, where their time goes, and why they come out.

import { make, set, size, sync } from "./dom.js";
import { order } from "./link.js";
import { confirmThat, complain } from "./dialogs.js";
import { showConsole, showScreen } from "./panel.js";

export function drawMachines(machines) {
  document.getElementById("kvm-stage").hidden = machines.length === 0;
  document.getElementById("kvm-none").hidden = machines.length !== 0;
  sync(document.getElementById("machines"), machines, createMachine, updateMachine);
}

function createMachine(machine) {
  return make(
    "article",
    { class: "box machine", "aria-labelledby": `name-${machine.id}` },
    make("div", { class: "head" }, make("h3", { id: `name-${machine.id}` }), make("span", { class: "state" })),
    make("p", { class: "facts" }),
    make("ul", { class: "threads", "aria-label": "Threads of its virtual processors" }),
    make("ul", { class: "devices", "aria-label": "Its devices" }),
    make("div", { class: "actions", role: "group", "aria-label": "What can be done" }),
  );
}

function updateMachine(box, machine) {
  const find = (selector) => box.querySelector(selector);
  set(find("h3"), { text: machine.name });
  set(find(".state"), { text: machine.state, "data-state": machine.state });
  set(find(".facts"), { text: `process ${machine.pid} · ${size(machine.memory_kib)} · engine ${machine.engine}` });
  const threads = machine.vcpus.map((vcpu) => ({ ...vcpu, id: `${machine.id}-vcpu-${vcpu.vcpu}` }));
  sync(find(".threads"), threads, createThread, updateThread);
  const devices = machine.devices.map((name) => ({ id: `${machine.id}-device-${name}`, name }));
  sync(find(".devices"), devices, (device) => make("li", { text: device.name }));
  drawActions(find(".actions"), machine);
}

function createThread() {
  return make(
    "li",
    { class: "thread" },
    make("span", { class: "name" }),
    make("span", { class: "modes", role: "img" }, make("span", { class: "non-root" }), make("span", { class: "root" })),
    make("span", { class: "exits" }),
  );
}

function updateThread(item, vcpu) {
  const share = vcpu.guest_share;
  const percent = share === null ? null : Math.round(100 * share);
  set(item.querySelector(".name"), { text: `vCPU ${vcpu.vcpu}, thread ${vcpu.thread}` });
  const bar = item.querySelector(".modes");
  set(bar, { "aria-label": percent === null ? "not measured" : `${percent}% of its time in the guest (non-root), the rest outside (root)` });
  item.querySelector(".non-root").style.width = `${percent ?? 0}%`;
  const exits = Object.entries(vcpu.exits).sort((one, other) => other[1] - one[1]).slice(0, 5);
  set(item.querySelector(".exits"), { text: exits.map(([reason, count]) => `${reason} ${count}`).join(" · ") || "no exits yet" });
}

function drawActions(row, machine) {
  const actions = [];
  if (machine.console) actions.push({ id: `console-${machine.id}`, text: "Console", act: () => showConsole(machine) });
  if (machine.screen) actions.push({ id: `screen-${machine.id}`, text: "Screen", act: () => showScreen(machine) });
  actions.push({ id: `stop-${machine.id}`, text: "Stop", danger: true, act: () => stop(machine) });
  sync(row, actions, (action) =>
    make("button", { type: "button", class: action.danger ? "danger" : null, text: action.text, "aria-label": `${action.text}: ${machine.name}`, click: action.act }),
  );
}

async function stop(machine) {
  const sure = await confirmThat(`Stop ${machine.name}?`, "The machine ends at once, as if its plug were pulled.", "Stop");
  if (sure) order("stop", { machine: machine.id }).catch(complain);
}
