// A screen: a VNC client (noVNC) on a web socket that carries the RFB protocol.

import RFB from "./vendor/novnc/core/rfb.js";
import { make } from "./dom.js";
import { address } from "./link.js";

/** Open it in `place`. Returns what ends it. */
export function openScreen(place, path) {
  const words = make("p", { role: "status", text: "connecting …" });
  const canvas = make("div", { class: "canvas" });
  place.append(words, canvas);
  const rfb = new RFB(canvas, address(path));
  rfb.scaleViewport = true;
  rfb.addEventListener("connect", () => {
    words.textContent = "Keys go to the guest while the screen has the focus.";
    rfb.focus();
  });
  rfb.addEventListener("disconnect", () => (words.textContent = "The screen has ended."));
  return () => rfb.disconnect();
}
