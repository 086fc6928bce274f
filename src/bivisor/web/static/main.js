// The page: the newest state to each part of the picture, and what the buttons of the top do.

import { follow } from "./link.js";
import { drawXen } from "./xen.js";
import { drawMachines } from "./machines.js";
import { refreshPanel, closePanel } from "./panel.js";
import { askForDomain } from "./create.js";
import { showStore } from "./store.js";

const link = document.getElementById("link");
let newest = null;
let isDue = false;

function draw() {
  isDue = false;
  drawXen(newest);
  drawMachines(newest.machines);
  refreshPanel(newest);
}

function later() {
  if (!isDue && newest) {
    isDue = true;
    requestAnimationFrame(draw);
  }
}

follow(
  "/live",
  (state) => {
    newest = state;
    later();
  },
  (words) => {
    link.textContent = words;
    link.classList.toggle("lost", words !== "live");
    document.body.classList.toggle("stale", words !== "live");
  },
);
new ResizeObserver(later).observe(document.getElementById("picture"));

document.getElementById("new-domain").addEventListener("click", askForDomain);
document.getElementById("show-store").addEventListener("click", showStore);
document.getElementById("panel-close").addEventListener("click", closePanel);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]") && !event.target.closest(".xterm, .screen")) closePanel();
});

const THEMES = { auto: "as the system has them", light: "light", dark: "dark" };
const theme = document.getElementById("theme");

function useTheme(name) {
  document.documentElement.dataset.theme = name;
  theme.setAttribute("aria-label", `Colours: ${THEMES[name]}`);
  try {
    localStorage.setItem("theme", name);
  } catch {
    // a browser without storage forgets it
  }
}

function storedTheme() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
}

theme.addEventListener("click", () => {
  const names = Object.keys(THEMES);
  useTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length]);
});
useTheme(storedTheme() in THEMES ? storedTheme() : "auto");
