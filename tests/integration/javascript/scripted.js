// Runs the cases of clients/scripted_servers.json on the client, in virtual time and in any
// runtime. clients/README.md describes their form.

const TURNS = 30;

/** What a JavaScript client sees. */
const SEES = new Set(["no status", "wake", "sleep"]);

/** Let all promises settle; the fakes below use nothing else. */
async function settle() {
  for (let turn = 0; turn < TURNS; turn++) await null;
}

/** A clock that moves only when it is told to. */
class Clock {
  time = 0;
  timers = new Map();
  #count = 0;

  constructor(random) {
    this.fractions = [random ?? 0.5].flat();
  }

  now = () => this.time;
  random = () => (this.fractions.length > 1 ? this.fractions.shift() : this.fractions[0]);
  setTimeout = (call, ms) => {
    this.timers.set(++this.#count, [this.time + ms, call]);
    return this.#count;
  };
  clearTimeout = (timer) => this.timers.delete(timer);

  async advance(ms) {
    const end = this.time + ms;
    for (;;) {
      const due = [...this.timers].filter(([, [at]]) => at <= end).sort((a, b) => a[1][0] - b[1][0]);
      if (!due.length) break;
      const [timer, [at, call]] = due[0];
      this.timers.delete(timer);
      this.time = Math.max(this.time, at);
      call();
      await settle();
    }
    this.time = end;
  }
}

/** JSON with sorted keys, to compare values. */
function canonical(value) {
  return JSON.stringify(value, (_, each) =>
    each !== null && typeof each === "object" && !Array.isArray(each)
      ? Object.fromEntries(Object.entries(each).sort(([a], [b]) => (a < b ? -1 : 1)))
      : each,
  );
}

function same(seen, wanted, what) {
  if (canonical(seen) !== canonical(wanted)) {
    throw new Error(`${what}: ${canonical(seen)}, and not ${canonical(wanted)}`);
  }
}

/** One client with its scripted server, application and time. */
class Script {
  sockets = [];
  calls = { getToken: [], onGap: [] };
  aborted = {};
  seen = {};

  constructor(Topic, data) {
    const script = this;
    this.Topic = Topic;
    this.data = data;
    this.clock = new Clock(data.random);
    this.WebSocket = class {
      constructor(url) {
        this.url = url;
        script.sockets.push(this);
        script.seen.connect = (script.seen.connect ?? 0) + 1;
      }
      send(text) {
        if (!this.accepted || this.gone) throw new Error("sent without a connection");
        script.note("sent", JSON.parse(text));
      }
      close(code) {
        if (!this.gone) script.note("closed", this.accepted ? code : "handshake");
        this.gone = true;
      }
      /** The connection ends by the server or the network. */
      end(code, reason, hasClose = true) {
        if (this.gone) return;
        this.gone = true;
        this.onerror?.({});
        if (hasClose) this.onclose?.({ code, reason });
      }
    };
  }

  note(kind, value) {
    (this.seen[kind] ??= []).push(value);
  }

  /** A callback of the application, whose result is a step of the script. */
  call(kind, value, signal) {
    this.note(kind, value);
    return new Promise((resolve, reject) => {
      const call = { resolve, reject };
      const calls = this.calls[kind];
      calls.push(call);
      signal.addEventListener("abort", () => {
        this.note("aborted", kind);
        calls.splice(calls.indexOf(call), 1);
        this.aborted[kind] = call;
      });
    });
  }

  get socket() {
    return this.sockets.at(-1);
  }

  create() {
    const topic = new this.Topic("wss://cell1.unit1.example/__topic/box1/col.topic.name", {
      ...this.data.options,
      getToken: ({ reason, signal }) => this.call("getToken", reason, signal),
      onGap: this.data.onGap
        ? ({ since, position, signal }) => this.call("onGap", { since, position }, signal)
        : undefined,
      WebSocket: this.WebSocket,
      clock: this.clock,
    });
    this.topic = topic;
    if (topic.state !== "idle") throw new Error(`the first state is ${topic.state}`);
    topic.addEventListener("state", (e) => {
      same(topic.state, e.state, "state of the event");
      this.note("state", e.state);
    });
    topic.addEventListener("error", (e) => {
      if (!(e.error instanceof Error)) throw new Error("no error in the event");
      this.note("error", e.error.code);
    });
    topic.addEventListener("gap", (e) => this.note("gap", { since: e.since, position: e.position }));
    topic.addEventListener("message", (e) => {
      same(e.body, JSON.parse(e.text), "body");
      this.note("message", { text: e.text, from: e.from, position: e.position });
    });
  }

  settleCall(kind, how, value) {
    // The result of a call that was aborted must have no effect.
    const call = this.calls[kind].shift() ?? this.aborted[kind];
    if (call === undefined) throw new Error(`no call of ${kind} is under way`);
    call[how](value);
  }

  actions = {
    start: () => this.create(),
    closeIdle: () => {
      this.create();
      this.topic.close();
    },
    token: ({ value, fails }) =>
      fails === undefined
        ? this.settleCall("getToken", "resolve", value)
        : this.settleCall("getToken", "reject", fails === null ? undefined : new Error(fails)),
    gapDone: () => this.settleCall("onGap", "resolve"),
    gapFails: () => this.settleCall("onGap", "reject", new Error("unreachable")),
    accept: () => {
      this.socket.accepted = true;
      this.socket.onopen?.({});
    },
    // As in Node.js 22, which has no event `close` then; `drop` is as in all others.
    refuse: () => this.socket.end(1006, "", false),
    drop: () => this.socket.end(1006, ""),
    cut: ({ code, reason }) => this.socket.end(code, reason),
    send: ({ message, text, binary }) =>
      this.socket.onmessage?.({
        data: binary === undefined ? (text ?? JSON.stringify(message)) : new ArrayBuffer(2),
      }),
    wait: ({ ms }) => this.clock.advance(ms),
    sleep: ({ ms }) => {
      this.clock.time += ms;
    },
    wake: () => globalThis.dispatchEvent(new Event("online")),
    refresh: () => this.topic.refresh(),
    close: () => this.topic.close(),
  };

  async run(steps) {
    for (const [index, step] of steps.entries()) {
      const { position, ...wanted } = step.then ?? {};
      this.seen = {};
      try {
        await this.actions[step.do](step);
        await settle();
        same(this.seen, wanted, "the client did");
        if (position !== undefined) same(this.topic.position, position, "position");
      } catch (error) {
        throw new Error(`step ${index + 1}, ${JSON.stringify(step)}: ${error.message}`);
      }
    }
    this.topic.close();
    await settle();
    same(this.clock.timers.size, 0, "timers after the end");
  }
}

function expand(table, steps) {
  return steps.flatMap((step) =>
    step.include === undefined ? [step] : expand(table, table.preludes[step.include]),
  );
}

/** Run all cases; returns how many ran, and a text for each case that failed. */
export async function run(table, Topic) {
  if (globalThis.dispatchEvent === undefined) {
    const page = new EventTarget();
    for (const name of ["addEventListener", "removeEventListener", "dispatchEvent"]) {
      globalThis[name] = page[name].bind(page);
    }
  }
  const failures = [];
  let ran = 0;
  for (const data of table.cases) {
    if (!(data.needs ?? []).every((need) => SEES.has(need))) continue;
    ran += 1;
    try {
      await new Script(Topic, data).run(expand(table, data.steps));
    } catch (error) {
      failures.push(`${data.name}: ${error.message}`);
    }
  }
  return { ran, failures };
}
