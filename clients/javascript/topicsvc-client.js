// topicsvc-client: receives from a topic of topicsvc, and sends to one.
// The policy is in clients/README.md; the states and options are in README.md beside this file.

const EXPIRED = "Session expired";
const INACTIVE = "Token inactive";
/** Reasons of 1008 after which another connection is made. */
const AGAIN = [EXPIRED, "Token timeout", "No pong", "Slow consumer"];
/** Reasons of error replies that count as 1008 with this reason; any other reason is temporary. */
const ENDS = [
  INACTIVE,
  EXPIRED,
  "Invalid message",
  "Too many messages",
  "Too many frames",
  "Ended by operator",
];
/** Milliseconds without a message after which a waking client wants to know whether it is connected. */
const QUIET = 15000;

/** The time in milliseconds: it goes on while the device sleeps, and never goes back. */
function makeNow() {
  let time = 0;
  let wall = Date.now();
  let steady = performance.now();
  return () => {
    time += Math.max(Date.now() - wall, performance.now() - steady, 0);
    wall = Date.now();
    steady = performance.now();
    return time;
  };
}

const makeClock = () => ({
  now: makeNow(),
  setTimeout: (call, ms) => setTimeout(call, ms),
  clearTimeout: (timer) => clearTimeout(timer),
  random: Math.random,
});

const problem = (code, text, more) => Object.assign(new Error(text), { code }, more);

/** The text of anything that was thrown: it may be no object, or have no text. */
function textOf(error) {
  try {
    return String(error?.message ?? error);
  } catch {
    return typeof error;
  }
}

/** The result of `begin`, an async function; the signal's reason if it is aborted first. */
const unlessAborted = (signal, begin) =>
  new Promise((done, stop) => {
    const abort = () => stop(signal.reason);
    signal?.throwIfAborted();
    signal?.addEventListener("abort", abort);
    begin()
      .finally(() => signal?.removeEventListener("abort", abort))
      .then(done, stop);
  });

/** Call `getToken`; throws if the result is no token. */
async function ask(options, reason, signal) {
  const token = await unlessAborted(signal, async () => options.getToken({ reason, signal }));
  if (token && typeof token === "string") return token;
  const what = token === "" ? "no token" : `a ${typeof token}, not a string`;
  throw new TypeError(`getToken returned ${what}`);
}

class Message extends Event {
  #data;
  constructor(message, data) {
    super("message");
    this.body = message.Body;
    this.from = message.From ?? null;
    this.position = message.Position ?? null;
    this.#data = data;
  }

  /** The JSON text of the body as it was sent; big numbers survive in it. */
  get text() {
    try {
      let [, text] = /^\s*\{\s*"From".*?"Body"\s*:(.*)\}/s.exec(this.#data);
      if (this.position) [, text] = /(.*),\s*"Position"/s.exec(text);
      JSON.parse(text);
      return text.trim();
    } catch {
      // The keys have another order, or there are other keys.
      return JSON.stringify(this.body);
    }
  }
}

/** Receives from one topic: connects, gets and renews tokens, connects again. */
export class Topic extends EventTarget {
  #options;
  #clock;
  #over = new AbortController();
  state = "idle";
  #error;
  #socket;
  #timer;
  /** The end of the pause, or of the wait for the handshake or for a reply. */
  #due = Infinity;
  #pauses = 0;
  #liveSince = Infinity;
  #heard;
  #silence;
  #token;
  /** Whether the token was not granted yet. */
  #fresh;
  #reason = "first";
  #refused;
  #expiry;
  #renewAt;
  #renewals = 0;
  /** Ends the call of `getToken` that is under way. */
  #asking;
  /** Whether a new token is wanted after the call or the reply that is under way. */
  #again;
  /** Of the last message that the application has, and that this client has. */
  #position;
  #received;
  /** Messages that wait for the first loop; null: a listener has the messages. */
  #early = [];
  /** Messages that wait for loops, each with the position before it. */
  #queues = new Set([this.#early]);
  /** What was told once about positions. */
  #said;
  /** Messages that wait for `onGap`. */
  #gap;

  constructor(url, options) {
    super();
    if (typeof options?.getToken !== "function") throw new TypeError("getToken is not a function");
    this.url = String(url);
    this.#options = { ...options };
    const defaults = {
      recover: true,
      minDelay: 500,
      maxDelay: 30000,
      connectTimeout: 10000,
      replyTimeout: 15000,
      buffer: 1000,
    };
    for (const [name, value] of Object.entries(defaults)) this.#options[name] ??= value;
    this.#options.WebSocket ??= globalThis.WebSocket;
    this.#clock = options.clock ?? makeClock();
    this.#position = this.#received = options.since ?? null;
    const until = { signal: this.#over.signal };
    const page = globalThis.document;
    globalThis.addEventListener?.("online", () => this.#wake(), until);
    page?.addEventListener("visibilitychange", () => page.hidden || this.#wake(), until);
    queueMicrotask(() => this.state === "idle" && this.#connect());
  }

  /** Loops read later than the messages arrive: the one that is farthest behind has the position. */
  get position() {
    const [[behind]] = [[], ...this.#queues].sort((a, b) => b.length - a.length);
    return behind ? behind[1] : this.#position;
  }

  /** Get a new token and present it at once, or after the reply that is under way. */
  refresh() {
    if (this.state === "live" && !this.#busy) {
      this.#fresh = false;
      this.#renew();
    } else if (this.state === "waiting") {
      this.#token = undefined;
      this.#connect();
    } else {
      this.#again = true;
    }
  }

  close() {
    if (!this.#over.signal.aborted) this.#end("closed");
  }

  addEventListener(type, ...more) {
    super.addEventListener(type, ...more);
    if (type === "message") {
      this.#queues.delete(this.#early);
      this.#early = null;
    }
  }

  [Symbol.asyncIterator]() {
    const loop = this.#loop();
    // Messages wait from now on.
    loop.next();
    return loop;
  }

  async *#loop() {
    const { buffer } = this.#options;
    const queue = this.#early ?? [];
    this.#early &&= undefined;
    this.#queues.add(queue);
    try {
      yield;
      for (;;) {
        if (queue.length > buffer) {
          throw problem("buffer", `more than ${buffer} messages wait: read faster, or set buffer`);
        }
        if (queue.length) yield queue.shift()[0];
        else if (this.#error) throw this.#error;
        else if (this.state === "closed") return;
        else await new Promise((done) => (queue.resume = done));
      }
    } finally {
      this.#queues.delete(queue);
    }
  }

  /** Whether a call of `getToken` or a reply is under way. */
  get #busy() {
    return this.#asking || this.#due < Infinity;
  }

  #set(state, why) {
    this.state = state;
    for (const queue of this.#queues) queue.resume?.();
    this.#emit("state", { state, ...why });
    return this.state === state;
  }

  #emit(type, fields) {
    this.dispatchEvent(Object.assign(new Event(type), fields));
  }

  /** Tell an error that is not final; returns its text. */
  #tell(code, cause, text = `${code} failed: ${textOf(cause)}`) {
    this.#emit("error", { error: problem(code, text, { cause }) });
    return text;
  }

  /** A random pause in milliseconds; its bound doubles with `count`. */
  #pause(count, most = Infinity) {
    const { minDelay, maxDelay } = this.#options;
    return this.#clock.random() * Math.min(maxDelay, minDelay * 2 ** count, Math.max(most, minDelay));
  }

  /** The times at which something is due, each with what to do then. */
  get #agenda() {
    const agenda = [
      [this.#due, () => (this.state === "waiting" ? this.#connect() : this.#lost("timeout"))],
    ];
    if (this.state === "live") {
      agenda.push([this.#heard + this.#silence, () => this.#lost("silence")]);
      if (this.#due === Infinity) agenda.push([this.#expiry, () => this.#lost(EXPIRED)]);
      if (!this.#busy) agenda.push([this.#renewAt, () => this.#renew()]);
    }
    return agenda;
  }

  /** Fire at the next time at which something may be due. */
  #arm() {
    const now = this.#clock.now();
    // Look at the clock each minute: a timer that is 75 s late was late after a sleep.
    const next = Math.min(now + 60000, ...this.#agenda.map(([time]) => time));
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(
      () => (this.#clock.now() - next > 75000 ? this.#wake() : this.#look()),
      Math.max(0, next - now),
    );
  }

  /** Do what is due. */
  #look() {
    if (this.#over.signal.aborted) return;
    const now = this.#clock.now();
    const found = this.#agenda.find(([time]) => now >= time);
    if (found) found[1]();
    else this.#arm();
  }

  /** The device woke up: a pause ends, and a quiet connection is checked. */
  #wake() {
    if (this.state === "waiting") return this.#connect();
    this.#look();
    if (this.state === "live" && !this.#busy && this.#clock.now() - this.#heard > QUIET) {
      this.#present();
    }
  }

  #connect() {
    this.#due = Infinity;
    if (!this.#set("connecting")) return;
    const known = this.#token && (this.#fresh || this.#clock.now() < this.#expiry);
    if (known) this.#open();
    else this.#ask();
  }

  #renew() {
    if (this.#fresh) this.#present();
    else this.#ask();
  }

  /** Renew again after a pause, in time for more than one attempt before the token expires. */
  #retry() {
    const now = this.#clock.now();
    this.#renewAt = now + this.#pause(this.#renewals++, (this.#expiry - now) / 2);
    this.#arm();
  }

  async #ask() {
    const asking = (this.#asking = new AbortController());
    this.#again = false;
    this.#arm();
    let token, error;
    const timer = this.#clock.setTimeout(
      () => asking.abort(new Error("no token within 30 s")),
      30000,
    );
    try {
      token = await ask(this.#options, this.#reason, asking.signal);
    } catch (caught) {
      error = caught;
    }
    this.#clock.clearTimeout(timer);
    if (this.#asking !== asking) return;
    this.#asking = undefined;
    const connecting = this.state === "connecting";
    if (token) {
      this.#token = token;
      this.#fresh = true;
      this.#reason = "expiring";
      if (connecting) this.#open();
      else this.#present();
    } else {
      const text = this.#tell("getToken", error);
      // A listener may have closed the topic.
      if (connecting) this.#lost(text);
      else if (!this.#over.signal.aborted) this.#retry();
    }
  }

  #open() {
    let socket;
    try {
      socket = this.#socket = new this.#options.WebSocket(this.url);
    } catch (error) {
      return this.#fail("failed", textOf(error));
    }
    socket.onopen = () => {
      socket.onopen = null;
      this.#present();
    };
    socket.onmessage = ({ data }) => this.#read(data);
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
    // Without `onopen` this does nothing. Node.js 22 has no event `close` after a failed handshake.
    socket.onerror = ({ message }) => socket.onopen && this.#closed(1006, message ?? "");
    this.#due = this.#clock.now() + this.#options.connectTimeout;
    this.#arm();
  }

  #present() {
    const Since = this.#options.recover && this.state !== "live" ? this.#received : undefined;
    this.#socket.send(JSON.stringify({ AccessToken: this.#token, Since }));
    this.#due = this.#clock.now() + this.#options.replyTimeout;
    this.#arm();
  }

  #read(data) {
    let message;
    try {
      message = JSON.parse(typeof data === "string" ? data : "binary");
    } catch (error) {
      const text = this.#tell("message", error, `not a message of topicsvc: ${error.message}`);
      return this.#lost(text);
    }
    this.#heard = this.#clock.now();
    if (message?.Response !== undefined) {
      if (message.Result === "Success") this.#granted(message);
      else this.#refuse(message.Reason);
    } else if (message?.Body !== undefined) {
      this.#take(message, data);
    } else if (message?.Position) {
      this.#take(message);
    }
    // Timers of hidden pages are late.
    if (this.#heard >= this.#renewAt) this.#look();
  }

  #granted({ ExpiresIn, Position: position = null, Missed, Heartbeat }) {
    const first = this.state !== "live";
    const { recover } = this.#options;
    const since = this.#received;
    if (this.#due < Infinity) {
      this.#due = Infinity;
      this.#expiry = this.#heard + ExpiresIn * 1000;
      this.#renewAt = this.#expiry - Math.min(90, 0.3 * ExpiresIn) * 1000;
      this.#fresh = this.#refused = false;
      this.#renewals = 0;
    }
    if (first) {
      this.#liveSince = this.#heard;
      this.#silence = position && Heartbeat ? Heartbeat * 1000 + QUIET : Infinity;
      if (!this.#set("live")) return;
      if (recover && !position) {
        this.#said ||= this.#tell("positions", null, "recover has no effect: no positions");
      }
    }
    if (recover) {
      if (first ? since !== null && Missed !== false : Missed && position) {
        this.#miss(position);
      } else if (position) {
        this.#take({ Position: position });
      }
    }
    if (this.#over.signal.aborted) return;
    if (this.#again) this.refresh();
    else this.#arm();
  }

  /** An error reply. */
  #refuse(reason) {
    if (ENDS.includes(reason)) {
      this.#closed(1008, reason);
    } else if (this.state !== "live") {
      this.#lost(reason);
    } else {
      this.#due = Infinity;
      if (this.#fresh || this.#again) {
        this.#fresh &&= !this.#again;
        this.#retry();
      } else this.#arm();
    }
  }

  /** Give a message or a position to the application, or let it wait for `onGap`. */
  #take(message, data) {
    const position = message.Position ?? null;
    const gap = this.#gap;
    this.#received = position ?? this.#received;
    if (!gap) this.#deliver(message, data);
    else if (gap.queue.length < this.#options.buffer) gap.queue.push([message, data]);
    else if (data) {
      // `onGap` runs again, but after a pause: otherwise it would never end under load.
      gap.queue = [];
      gap.position = position;
      gap.abort?.abort();
      if (gap.abort) this.#loadLater(gap);
      if (this.#gap === gap) this.#emit("gap", { since: gap.since, position });
    }
  }

  #deliver(message, data) {
    if (this.#over.signal.aborted) return;
    const before = this.#position;
    this.#position = message.Position ?? before;
    if (!data) return;
    const each = new Message(message, data);
    for (const queue of this.#queues) {
      if (queue.length <= this.#options.buffer) queue.push([each, before]);
      // It is over its bound: it has the position only while nothing else reads.
      else if (this.#queues.size > 1 || this.#early === null) this.#queues.delete(queue);
      queue.resume?.();
    }
    this.dispatchEvent(each);
  }

  /** Messages were missed: the application loads its state anew. */
  #miss(position) {
    this.#leaveGap();
    if (this.#over.signal.aborted) return;
    const since = this.#position;
    this.#received = position;
    if (this.#options.onGap) this.#load((this.#gap = { since, position, queue: [], tries: 0 }));
    else this.#position = position;
    this.#emit("gap", { since, position });
  }

  async #load(gap) {
    const { since, position } = gap;
    const { signal } = (gap.abort = new AbortController());
    try {
      await this.#options.onGap({ since, position, signal });
      if (signal.aborted) return;
      this.#gap = undefined;
      this.#position = position;
      for (const each of gap.queue) this.#deliver(...each);
    } catch (error) {
      if (signal.aborted) return;
      this.#tell("onGap", error);
      this.#loadLater(gap);
    }
  }

  /** Call `onGap` again after a pause, unless a listener has closed the topic. */
  #loadLater(gap) {
    if (this.#gap !== gap) return;
    gap.abort = undefined;
    gap.timer = this.#clock.setTimeout(() => this.#load(gap), this.#pause(gap.tries++));
  }

  #leaveGap() {
    this.#clock.clearTimeout(this.#gap?.timer);
    this.#gap?.abort?.abort();
    this.#gap = undefined;
  }

  /** The connection was closed with this code and reason. */
  #closed(code, reason) {
    // The token, unless it is a new one that came too late for this session.
    if (reason === EXPIRED) this.#expiry = -Infinity;
    if (code === 1008 && reason === INACTIVE) {
      if (this.#refused) return this.#fail("refused", `the token was refused: ${INACTIVE}`);
      this.#refused = true;
      this.#token = undefined;
      this.#reason = "refused";
    } else if (/^100[2379]$/.test(code) || (code === 1008 && !AGAIN.includes(reason))) {
      // Another connection would end in the same way.
      return this.#fail("failed", `the connection was closed: ${code} ${reason}`);
    }
    this.#lost(reason, code);
  }

  /** Leave the connection, if there is one, and what was done for it. */
  #drop() {
    const socket = this.#socket;
    this.#asking?.abort();
    this.#asking = this.#socket = undefined;
    this.#due = this.#renewAt = Infinity;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close(1000);
    }
  }

  #lost(reason, code) {
    this.#drop();
    // A listener may have closed the topic, also one of the signal.
    if (this.#over.signal.aborted) return;
    if (this.#again) this.#token = undefined;
    const now = this.#clock.now();
    // A live connection that lasted this long begins with short pauses again.
    if (now - this.#liveSince >= 5000) this.#pauses = 0;
    this.#liveSince = Infinity;
    this.#due = now + this.#pause(this.#pauses++);
    if (this.#set("waiting", { code, reason })) this.#arm();
  }

  #fail(code, text) {
    this.#error = problem(code, text);
    this.#end("failed");
    this.#emit("error", { error: this.#error });
  }

  #end(state) {
    this.#over.abort();
    this.#drop();
    this.#leaveGap();
    this.#clock.clearTimeout(this.#timer);
    this.#set(state);
  }
}

/** Send one JSON value to a topic; resolves when the broker has accepted it. */
export async function send(url, value, options) {
  const { signal, clock = makeClock() } = options;
  const body = JSON.stringify(value);
  let reason = "first";
  let token = await ask(options, reason, signal);
  for (let paused = 0; ; ) {
    const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
    const request = { method: "POST", headers, body, signal, redirect: "manual" };
    const response = await fetch(url, request);
    const { status } = response;
    if (response.ok) return;
    const pause = Math.max(Number(response.headers.get("Retry-After")) || 1, 1);
    const error = await response.json().catch(() => {});
    signal?.throwIfAborted();
    if (status === 401 && reason === "first") {
      token = await ask(options, (reason = "refused"), signal);
    } else if (status === 429 && (paused += pause) <= 60) {
      // All pauses together last 60 s at most. The service did not take the message. After 503 this is not certain.
      let timer;
      const pausing = () => new Promise((done) => (timer = clock.setTimeout(done, pause * 1000)));
      await unlessAborted(signal, pausing).finally(() => clock.clearTimeout(timer));
    } else {
      // Browsers hide the status of a redirect: it is 0.
      const text = status < 400 ? "a redirect" : (error?.message?.value ?? "");
      throw problem(error?.code, `HTTP ${status}: ${text}`, { status });
    }
  }
}
