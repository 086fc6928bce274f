// A new DomU from a form: what `bivisor xl create` takes, with the same defaults.

import { make } from "./dom.js";
import { order } from "./link.js";
import { closing, converse } from "./dialogs.js";

const dialog = document.getElementById("dialog");
const TYPES = [
  ["pvh", "PVH: hardware virtualization, paravirtual devices"],
  ["pv", "PV: the kernel runs without privilege"],
  ["hvm", "HVM: firmware and emulated hardware"],
];

function field(label, control, hint = "") {
  const id = `field-${control.name}`;
  control.id = id;
  const note = hint ? make("small", { id: `${id}-hint`, text: hint }) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return make("div", { class: "field" }, make("label", { for: id, text: label }), control, note);
}

function input(name, value = "", more = {}) {
  return make("input", { name, value, autocomplete: "off", spellcheck: "false", ...more });
}

export async function askForDomain() {
  const form = make(
    "form",
    { method: "dialog" },
    field("Name", input("name", "", { required: true })),
    field("Type", make("select", { name: "type" }, ...TYPES.map(([value, text]) => make("option", { value, text })))),
    field("Memory", input("memory", "256"), "MiB, or with a unit: 2G"),
    field("vCPUs", input("vcpus", "1", { type: "number", min: 1, max: 128 })),
    field("Kernel", input("kernel"), "A file on this machine; none: the default guest"),
    field("Initial RAM disk", input("ramdisk")),
    field("Command line", input("cmdline")),
    field("Disks", make("textarea", { name: "disks", rows: 2, spellcheck: "false" }), "One a line, as in xl.cfg: /path/disk.img,raw,xvda,rw"),
    field("Networks", make("textarea", { name: "vifs", rows: 2, spellcheck: "false" }), "One a line, as in xl.cfg: bridge=xenbr0"),
  );
  const wrong = make("p", { class: "wrong", role: "alert" });
  const create = make("button", { type: "submit", text: "Create" });
  form.append(wrong, make("div", { class: "actions" }, closing("Cancel", ""), create));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    create.disabled = true;
    try {
      await order("create", Object.fromEntries(new FormData(form)));
      dialog.close("created");
    } catch (error) {
      wrong.textContent = error.message;
    } finally {
      create.disabled = false;
    }
  });
  await converse("New domain", [form], []);
}
