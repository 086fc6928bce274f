// The connection to the server: the newest state as it comes, orders, and a connection that comes back by itself.

const FIRST_MS = 500;
const LONGEST_MS = 8000;

/** A web socket's address on this server. */
export function address(path) {
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${path}`;
}

/** Follow `path`: `hear(message)` for each message of JSON, `tell(words)` for how it goes. It never gives up. */
export function follow(path, hear, tell = () => {}) {
  let wait = FIRST_MS;
  let socket = null;
  let timer = 0;
  let isOver = false;
  const open = () => {
    socket = new WebSocket(address(path));
    socket.onopen = () => {
      wait = FIRST_MS;
      tell("live");
    };
    socket.onmessage = (event) => hear(JSON.parse(event.data));
    socket.onclose = (event) => {
      if (isOver) return;
      tell(event.reason || "the connection is lost; trying again …");
      timer = setTimeout(open, wait);
      wait = Math.min(LONGEST_MS, wait * 2);
    };
  };
  open();
  return () => {
    isOver = true;
    clearTimeout(timer);
    socket.close();
  };
}

/** Have the server do something; its result. An Error with its words where it refuses. */
export async function order(name, words) {
  return await answer(
    fetch(`/order/${name}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(words),
    }),
  );
}

/** Ask the server for something of JSON. */
export async function ask(path) {
  return await answer(fetch(path));
}

async function answer(request) {
  let response;
  try {
    response = await request;
  } catch {
    throw new Error("the server does not answer");
  }
  if (response.status === 401) throw new Error("no token: open the address that bivisor web printed");
  const message = await response.json();
  if (message.error) throw new Error(message.error);
  return message.result;
}
