// topicsvc-client: receives from a topic of topicsvc, and sends to one.
// The policy is in clients/README.md; the states and options are in README.md beside this file.

const DEFAULTS = {
  recover: true,
  minDelay: 500,
  maxDelay: 30000,
  connectTimeout: 10000,
  replyTimeout: 15000,
  buffer: 1000,
};
/** Close codes after which another connection would end in the same way. */
const FINAL = [1002, 1003, 1007, 1009];
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
/** Milliseconds: a live connection that lasted this long begins with short pauses again. */
const STEADY = 5000;
/** Milliseconds without a message after which a waking client wants to know whether it is connected. */
const QUIET = 15000;
/** Milliseconds between two looks at the clock, and how late a timer is only after a sleep. */
const LOOK = 60000;
const SLEPT = 75000;
/** Milliseconds after which a call of `getToken` counts as failed. */
const LONGEST_CALL = 30000;
/** Seconds: most that `send` waits before it sends again, all pauses together. */
const LONGEST_PAUSE = 60;
/** What stands before the body in a data message. */
const BEFORE_BODY = /^\s*\{\s*"From"\s*:\s*(?:null|"(?:[^"\\]|\\.)*")\s*,\s*"Body"\s*:/;

/** The time in milliseconds: it goes on while the device sleeps, and never goes back. */
function makeNow() {
  let time = 0;
  let wall = Date.now();
  let steady = performance.now();
  return () => {
    const before = [wall, steady];
    wall = Date.now();
    steady = performance.now();
    return (time += Math.max(wall - before[0], steady - before[1], 0));
  };
}

const makeClock = () => ({
  now: makeNow(),
  setTimeout: (call, ms) => setTimeout(call, ms),
  clearTimeout: (timer) => clearTimeout(timer),
  random: Math.random,
});

const event = (type, fields) => Object.assign(new Event(type), fields);
const problem = (code, text, more) => Object.assign(new Error(text), { code }, more);

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
    let text = this.#data.slice(BEFORE_BODY.exec(this.#data)?.[0].length).trim().slice(0, -1);
    if (this.position !== null) {
      text = text.slice(0, text.lastIndexOf('"Position"')).trim().slice(0, -1);
    }
    try {
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
  #state = "idle";
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
  #fresh = false;
  #reason = "first";
  #refused = false;
  #expiry;
  #renewAt;
  #renewals = 0;
  /** Ends the call of `getToken` that is under way. */
  #asking;
  /** Whether a new token is wanted after the call or the reply that is under way. */
  #again = false;
  /** Of the last message that the application has, and that this client has. */
  #position;
  #received;
  /** The position before the message that is being delivered. */
  #before;
  /** Messages that wait for loops. */
  #queues = new Set();
  #saidPositions = false;
  /** Messages that wait for `onGap`. */
  #gap;

  constructor(url, options) {
    super();
    if (typeof options?.getToken !== "function") throw new TypeError("getToken is not a function");
    this.url = String(url);
    this.#options = { ...options };
    for (const [name, value] of Object.entries(DEFAULTS)) this.#options[name] ??= value;
    this.#options.WebSocket ??= globalThis.WebSocket;
    this.#clock = options.clock ?? makeClock();
    this.#position = this.#received = options.since ?? null;
    const until = { signal: this.#over.signal };
    const page = globalThis.document;
    globalThis.addEventListener?.("online", () => this.#wake(), until);
    page?.addEventListener("visibilitychange", () => page.hidden || this.#wake(), until);
    queueMicrotask(() => this.#state === "idle" && this.#connect());
  }

  get state() {
    return this.#state;
  }

  /** Loops read later than the messages arrive: the one that is farthest behind has the position. */
  get position() {
    const [[behind]] = [[], ...this.#queues].sort((a, b) => b.length - a.length);
    return behind ? behind.before : this.#position;
  }

  /** Get a new token and present it at once, or after the reply that is under way. */
  refresh() {
    if (this.#state === "live" && !this.#busy) {
      this.#fresh = false;
      this.#renew();
    } else if (this.#state === "waiting") {
      this.#token = undefined;
      this.#connect();
    } else {
      this.#again = true;
    }
  }

  close() {
    if (!this.#over.signal.aborted) this.#end("closed");
  }

  async *[Symbol.asyncIterator]() {
    const { buffer } = this.#options;
    const queue = [];
    let resume;
    const add = (each) => {
      if (each.type === "message" && queue.length <= buffer) {
        queue.push({ each, before: this.#before });
      }
      resume?.();
    };
    this.#queues.add(queue);
    this.addEventListener("message", add);
    this.addEventListener("state", add);
    try {
      for (;;) {
        if (queue.length > buffer) {
          throw problem("buffer", `more than ${buffer} messages wait: read faster, or set buffer`);
        }
        if (queue.length) yield queue.shift().each;
        else if (this.#error) throw this.#error;
        else if (this.#state === "closed") return;
        else await new Promise((done) => (resume = done));
      }
    } finally {
      this.#queues.delete(queue);
      this.removeEventListener("message", add);
      this.removeEventListener("state", add);
    }
  }

  /** Whether a call of `getToken` or a reply is under way. */
  get #busy() {
    return this.#asking || this.#due < Infinity;
  }

  #set(state) {
    this.#state = state;
    this.dispatchEvent(event("state", { state }));
    return this.#state === state;
  }

  #tell(code, text, cause) {
    this.dispatchEvent(event("error", { error: problem(code, text, { cause }) }));
  }

  /** A random pause in milliseconds; its bound doubles with `count`. */
  #pause(count, most = Infinity) {
    const { minDelay, maxDelay } = this.#options;
    return this.#clock.random() * Math.min(maxDelay, minDelay * 2 ** count, Math.max(most, minDelay));
  }

  /** Fire at the next time at which something may be due. */
  #arm() {
    const now = this.#clock.now();
    let next = Math.min(this.#due, now + LOOK);
    if (this.#state === "live") {
      next = Math.min(next, this.#heard + this.#silence, this.#due < Infinity ? next : this.#expiry);
      if (!this.#busy) next = Math.min(next, this.#renewAt);
    }
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(
      () => (this.#clock.now() - next > SLEPT ? this.#wake() : this.#look()),
      Math.max(0, next - now),
    );
  }

  /** Do what is due. */
  #look() {
    if (this.#over.signal.aborted) return;
    const now = this.#clock.now();
    if (this.#state === "waiting") {
      if (now >= this.#due) return this.#connect();
    } else if (now >= this.#due) {
      return this.#lost();
    } else if (this.#state === "live") {
      if (now >= this.#heard + this.#silence) return this.#lost();
      if (now >= this.#expiry && this.#due === Infinity) return this.#lost();
      if (now >= this.#renewAt && !this.#busy) return this.#renew();
    }
    this.#arm();
  }

  /** The device woke up: a pause ends, and a quiet connection is checked. */
  #wake() {
    if (this.#state === "waiting") return this.#connect();
    this.#look();
    if (this.#state === "live" && !this.#busy && this.#clock.now() - this.#heard > QUIET) {
      this.#present();
    }
  }

  #connect() {
    this.#due = Infinity;
    if (!this.#set("connecting")) return;
    const known = this.#token && (this.#fresh || this.#clock.now() < this.#expiry);
    if (known) this.#open();
    else this.#ask(this.#reason, () => this.#open(), () => this.#lost());
  }

  #renew() {
    if (this.#fresh) return this.#present();
    this.#ask("expiring", () => this.#present(), () => this.#retry());
  }

  /** Renew again after a pause, in time for more than one attempt before the token expires. */
  #retry() {
    const now = this.#clock.now();
    this.#renewAt = now + this.#pause(this.#renewals++, (this.#expiry - now) / 2);
    this.#arm();
  }

  async #ask(reason, done, failed) {
    const asking = (this.#asking = new AbortController());
    const { signal } = asking;
    this.#again = false;
    this.#arm();
    let token, error;
    const timer = this.#clock.setTimeout(
      () => asking.abort(new Error(`no token within ${LONGEST_CALL / 1000} s`)),
      LONGEST_CALL,
    );
    const aborted = new Promise((done) => (signal.onabort = () => done()));
    try {
      token = await Promise.race([this.#options.getToken({ reason, signal }), aborted]);
      if (!token) throw signal.reason ?? new TypeError("getToken returned no token");
    } catch (caught) {
      error = caught;
    }
    this.#clock.clearTimeout(timer);
    if (this.#asking !== asking) return;
    this.#asking = undefined;
    if (token) {
      this.#token = token;
      this.#fresh = true;
      this.#reason = "expiring";
      done();
    } else {
      // The error may be no object: `Promise.reject()` has none.
      this.#tell("getToken", `getToken failed: ${error?.message ?? error}`, error);
      // A listener may have closed the topic.
      if (!this.#over.signal.aborted) failed();
    }
  }

  #open() {
    let socket;
    try {
      socket = this.#socket = new this.#options.WebSocket(this.url);
    } catch (error) {
      return this.#fail("failed", error.message);
    }
    socket.onopen = () => this.#present();
    socket.onmessage = ({ data }) => this.#read(data);
    socket.onclose = ({ code, reason }) => this.#closed(code, reason);
    socket.onerror = () => {};
    this.#due = this.#clock.now() + this.#options.connectTimeout;
    this.#arm();
  }

  #present() {
    const message = { AccessToken: this.#token };
    if (this.#options.recover && this.#state !== "live") message.Since = this.#received;
    this.#socket.send(JSON.stringify(message));
    this.#due = this.#clock.now() + this.#options.replyTimeout;
    this.#arm();
  }

  #read(data) {
    let message;
    try {
      if (typeof data !== "string") throw new TypeError("a binary message");
      message = JSON.parse(data);
    } catch (error) {
      this.#tell("message", `not a message of topicsvc: ${error.message}`, error);
      return this.#over.signal.aborted || this.#lost();
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
    const first = this.#state !== "live";
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
      this.#silence = position !== null && Heartbeat ? Heartbeat * 1000 + QUIET : Infinity;
      if (!this.#set("live")) return;
      if (recover && position === null && !this.#saidPositions) {
        this.#saidPositions = true;
        this.#tell("positions", "the service has no positions: recover has no effect");
      }
    }
    if (recover) {
      if (first ? since !== null && Missed !== false : Missed && position !== null) {
        this.#miss(position);
      } else if (position !== null) {
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
      this.#drop();
      this.#closed(1008, reason);
    } else if (this.#state !== "live") {
      this.#lost();
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
      if (this.#gap === gap) this.dispatchEvent(event("gap", { since: gap.since, position }));
    }
  }

  #deliver(message, data) {
    if (this.#over.signal.aborted) return;
    this.#before = this.#position;
    this.#position = message.Position ?? this.#position;
    if (data) this.dispatchEvent(new Message(message, data));
  }

  /** Messages were missed: the application loads its state anew. */
  #miss(position) {
    this.#leaveGap();
    if (this.#over.signal.aborted) return;
    const since = this.#position;
    this.#received = position;
    if (this.#options.onGap) this.#load((this.#gap = { since, position, queue: [], tries: 0 }));
    else this.#position = position;
    this.dispatchEvent(event("gap", { since, position }));
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
      this.#tell("onGap", `onGap failed: ${error?.message ?? error}`, error);
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
    } else if (FINAL.includes(code) || (code === 1008 && !AGAIN.includes(reason))) {
      return this.#fail("failed", `the connection was closed: ${code} ${reason}`);
    }
    this.#lost();
  }

  /** Leave the connection, if there is one, and what was done for it. */
  #drop() {
    const socket = this.#socket;
    this.#socket = undefined;
    this.#asking?.abort();
    this.#asking = undefined;
    this.#due = this.#renewAt = Infinity;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close(1000);
    }
  }

  #lost() {
    this.#drop();
    if (this.#again) this.#token = undefined;
    const now = this.#clock.now();
    if (now - this.#liveSince >= STEADY) this.#pauses = 0;
    this.#liveSince = Infinity;
    this.#due = now + this.#pause(this.#pauses++);
    if (this.#set("waiting")) this.#arm();
  }

  #fail(code, text) {
    this.#error = problem(code, text);
    this.#end("failed");
    this.dispatchEvent(event("error", { error: this.#error }));
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
export async function send(url, value, { getToken, signal, clock = makeClock() }) {
  const body = JSON.stringify(value);
  let reason = "first";
  let token = await getToken({ reason, signal });
  for (let paused = 0; ; ) {
    const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
    const response = await fetch(url, { method: "POST", headers, body, signal });
    const { status } = response;
    if (response.ok) return;
    const pause = Math.max(Number(response.headers.get("Retry-After")) || 1, 1);
    const error = await response.json().catch(() => {});
    signal?.throwIfAborted();
    if (status === 401 && reason === "first") {
      token = await getToken({ reason: (reason = "refused"), signal });
    } else if (status === 429 && (paused += pause) <= LONGEST_PAUSE) {
      // The service did not take the message. After 503 this is not certain.
      await new Promise((done, stop) => {
        const abort = () => {
          clock.clearTimeout(timer);
          stop(signal.reason);
        };
        signal?.addEventListener("abort", abort, { once: true });
        const timer = clock.setTimeout(() => {
          signal?.removeEventListener("abort", abort);
          done();
        }, pause * 1000);
      });
    } else {
      throw problem(error?.code, `HTTP ${status}: ${error?.message?.value ?? ""}`, { status });
    }
  }
}
