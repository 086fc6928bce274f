// A console: a terminal (xterm.js) on a web socket that carries the guest's bytes.

import { Terminal } from "./vendor/xterm/xterm.mjs";
import { FitAddon } from "./vendor/xterm/addon-fit.mjs";
import { address } from "./link.js";

/** Open it in `place`. Returns what ends it. */
export function openConsole(place, path) {
  const terminal = new Terminal({ screenReaderMode: true, cursorBlink: false, fontSize: 14, scrollback: 5000 });
  const fit = new FitAddon();
  terminal.loadAddon(fit);
  terminal.open(place);
  fit.fit();
  const observer = new ResizeObserver(() => fit.fit());
  observer.observe(place);
  const socket = new WebSocket(address(path));
  socket.binaryType = "arraybuffer";
  socket.onmessage = (event) => terminal.write(typeof event.data === "string" ? event.data : new Uint8Array(event.data));
  socket.onclose = (event) => terminal.write(`\r\n[${event.reason || "the console has ended"}]\r\n`);
  const encoder = new TextEncoder();
  terminal.onData((text) => socket.readyState === WebSocket.OPEN && socket.send(encoder.encode(text)));
  terminal.onBinary((text) => socket.readyState === WebSocket.OPEN && socket.send(Uint8Array.from(text, (c) => c.charCodeAt(0))));
  terminal.focus();
  return () => {
    socket.onclose = null;
    socket.close();
    observer.disconnect();
    terminal.dispose();
  };
}
