import { Topic, send } from "./topicsvc-client.js";

const MAX_MESSAGES = 200;
const MAX_TEXT = 2000;
const CUT = 5000; // milliseconds

const byId = (id) => document.getElementById(id);
const [url, token, body] = ["url", "token", "body"].map(byId);
let topic = null;
let socket = null;
let cutUntil = 0;
let demo = null;

/** A WebSocket that the page can cut, and that stays cut for some seconds. */
class CuttableWebSocket {
  #url;
  #socket;
  #timer;

  constructor(url) {
    socket = this;
    this.#url = url;
    this.#openLater();
  }

  #openLater() {
    this.#timer = setTimeout(() => this.#open(), Math.max(0, cutUntil - Date.now()));
  }

  #open() {
    this.#socket = new WebSocket(this.#url);
    for (const type of ["open", "message", "close", "error"]) {
      this.#socket.addEventListener(type, (event) => this[`on${type}`]?.(event));
    }
  }

  send(text) {
    this.#socket.send(text);
  }

  /** The client leaves the connection. */
  close(code) {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#socket?.close(code);
  }

  /** The user cuts the connection: it is closed, or opened later. */
  cut() {
    if (this.#socket) {
      this.#socket.close();
    } else if (this.#timer !== undefined) {
      clearTimeout(this.#timer);
      this.#openLater();
    }
  }
}

/** Get the URLs of the demo and a new token, and show them. */
async function fetchDemo(signal) {
  const response = await fetch("demo.json", { cache: "no-store", signal });
  if (!response.ok) throw new Error(`no token: HTTP ${response.status}`);
  demo = await response.json();
  url.value ||= demo.url;
  token.value = demo.token;
  byId("curl").textContent = demo.curl;
}

/** The token that the user has typed in, or a new one. */
async function getToken({ reason, signal }) {
  if (token.value !== (demo?.token ?? "")) return token.value;
  if (!demo || reason !== "first") await fetchDemo(signal);
  return demo.token;
}

function add(text, position, kind = "") {
  const list = byId("messages");
  const item = document.createElement("p");
  item.className = kind;
  item.textContent = text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)} ...` : text;
  if (position) {
    const place = document.createElement("span");
    place.className = "position";
    place.textContent = ` ${position}`;
    item.append(place);
  }
  const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 5;
  list.append(item);
  while (list.childElementCount > MAX_MESSAGES) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
  byId("empty").hidden = true;
}

function connect() {
  topic?.close();
  byId("note").textContent = "";
  try {
    topic = new Topic(url.value, { getToken, WebSocket: CuttableWebSocket });
  } catch (error) {
    byId("note").textContent = error.message;
    return;
  }
  const current = topic;
  const listen = (type, listener) =>
    topic.addEventListener(type, (event) => current === topic && listener(event));
  listen("state", ({ state }) => {
    byId("state").textContent = state;
    byId("state").dataset.state = state;
    if (state === "live") byId("note").textContent = "Connected: the messages follow.";
  });
  listen("message", ({ text, from, position }) => add(`${text} from ${from}`, position));
  listen("gap", ({ position }) => add("Messages may be missing before this position:", position, "gap"));
  listen("error", ({ error }) => (byId("note").textContent = error.message));
}

byId("connection").addEventListener("submit", (event) => {
  event.preventDefault();
  connect();
});

byId("cut").addEventListener("click", () => {
  byId("note").textContent = "Cut for 5 seconds. Send something now: it arrives afterwards.";
  cutUntil = Date.now() + CUT;
  socket?.cut();
});

byId("sending").addEventListener("submit", async (event) => {
  event.preventDefault();
  const result = byId("result");
  let value;
  try {
    value = JSON.parse(body.value);
  } catch (error) {
    result.textContent = `Not JSON: ${error.message}`;
    return;
  }
  try {
    if (!demo) await fetchDemo();
    await send(demo.sendUrl, value, { getToken });
    result.textContent = "The broker has accepted the message.";
  } catch (error) {
    result.textContent = error.message;
  }
});

try {
  await fetchDemo();
  if (demo.token) connect();
  else byId("note").textContent = "Paste the token that the terminal shows.";
} catch (error) {
  byId("note").textContent = `The demo does not answer: ${error.message}. Load the page again.`;
}
