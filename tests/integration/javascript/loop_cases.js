// Cases of `for await`, and of listeners that act on the topic; prints how many ran.
import assert from "node:assert/strict";
import { Topic } from "../../../clients/javascript/topicsvc-client.js";

/** A socket whose server grants each token and sends these messages. */
function socketOf(count, afterwards) {
  return class {
    static made = [];
    constructor() {
      this.constructor.made.push(this);
      queueMicrotask(() => this.onopen?.());
    }
    send() {
      queueMicrotask(() => {
        this.receive({ Response: "AccessToken", Result: "Success", ExpiresIn: 3600 });
        for (let n = 1; n <= count; n++) this.receive({ From: null, Body: n });
        afterwards?.(this);
      });
    }
    receive(message) {
      this.onmessage?.({ data: JSON.stringify(message) });
    }
    close() {
      this.isClosed = true;
    }
  };
}

/** The same with positions: a.0 in the reply, then one for each message. */
function placedSocketOf(count, Missed = false) {
  return class extends socketOf(0) {
    send() {
      const place = { Position: "a.0", Missed, Heartbeat: 60 };
      queueMicrotask(() => {
        this.receive({ Response: "AccessToken", Result: "Success", ExpiresIn: 3600, ...place });
        for (let n = 1; n <= count; n++) this.receive({ From: null, Body: n, Position: `a.${n}` });
      });
    }
  };
}

const make = (WebSocket, options) =>
  new Topic("ws://127.0.0.1/", { getToken: () => "t", recover: false, WebSocket, ...options });

const cases = {
  async "a loop ends when the topic is closed"() {
    const topic = make(socketOf(3));
    const bodies = [];
    for await (const { body } of topic) {
      bodies.push(body);
      if (body === 3) topic.close();
    }
    assert.deepEqual([bodies, topic.state], [[1, 2, 3], "closed"]);
  },
  async "a loop has the messages before a failure, and then throws"() {
    const topic = make(socketOf(2, (socket) => socket.onclose({ code: 1003, reason: "Invalid message" })));
    const bodies = [];
    await assert.rejects(
      async () => {
        for await (const { body } of topic) bodies.push(body);
      },
      { code: "failed", message: "the connection was closed: 1003 Invalid message" },
    );
    assert.deepEqual([bodies, topic.state], [[1, 2], "failed"]);
    await assert.rejects(() => topic[Symbol.asyncIterator]().next(), { code: "failed" });
  },
  async "two loops have all messages each"() {
    const topic = make(socketOf(3));
    const read = async () => {
      const bodies = [];
      for await (const { body } of topic) if (bodies.push(body) === 3) return bodies;
    };
    assert.deepEqual(await Promise.all([read(), read()]), [[1, 2, 3], [1, 2, 3]]);
    topic.close();
  },
  async "a loop that leaves does not close the topic"() {
    const topic = make(socketOf(1));
    for await (const each of topic) if (each.body === 1) break;
    assert.equal(topic.state, "live");
    topic.close();
  },
  async "the position is that of the last message which a loop has returned"() {
    const topic = make(placedSocketOf(3), { recover: true });
    const positions = [];
    for await (const { position } of topic) {
      await new Promise((done) => setTimeout(done)); // all messages wait now
      positions.push([position, topic.position]);
      if (position === "a.3") topic.close();
    }
    assert.deepEqual(positions, [1, 2, 3].map((n) => [`a.${n}`, `a.${n}`]));
  },
  async "the position before the first turn of a loop is that before the messages which wait"() {
    const topic = make(placedSocketOf(2), { recover: true });
    const loop = topic[Symbol.asyncIterator]();
    const first = loop.next();
    await new Promise((done) => setTimeout(done));
    assert.equal(topic.position, "a.1");
    await first;
    await loop.next();
    assert.equal(topic.position, "a.2");
    topic.close();
  },
  async "the slowest of two loops and the listeners have the position"() {
    const topic = make(placedSocketOf(3), { recover: true });
    const heard = [];
    topic.addEventListener("message", (e) => heard.push([e.position, topic.position]));
    const loops = [topic[Symbol.asyncIterator](), topic[Symbol.asyncIterator]()];
    await Promise.all(loops.map((loop) => loop.next()));
    await new Promise((done) => setTimeout(done));
    await loops[0].next();
    assert.equal(topic.position, "a.1");
    await loops[1].return();
    assert.equal(topic.position, "a.2");
    await loops[0].return();
    assert.equal(topic.position, "a.3");
    topic.close();
  },
  async "without a loop a listener of a message sees its position"() {
    const topic = make(placedSocketOf(2), { recover: true });
    const seen = [];
    topic.addEventListener("message", (e) => seen.push([e.position, topic.position]));
    await new Promise((done) => setTimeout(done));
    assert.deepEqual(seen, [["a.1", "a.1"], ["a.2", "a.2"]]);
    topic.close();
  },
  async "getToken may close the topic: no timer is left"() {
    const timers = new Set();
    const clock = {
      now: () => 0,
      random: () => 0,
      setTimeout: (call) => timers.add(call) && call,
      clearTimeout: (call) => timers.delete(call),
    };
    for (const last of ["first", "expiring"]) {
      const reasons = [];
      const getToken = ({ reason }) => {
        reasons.push(reason);
        if (reason === last) topic.close();
        else topic.refresh(); // after the reply
        if (reason === last) throw new Error("closed");
        return "t";
      };
      const topic = make(socketOf(1), { getToken, clock });
      topic.addEventListener("error", (e) => assert.fail(e.error));
      await new Promise((done) => setTimeout(done));
      assert.deepEqual([reasons.at(-1), topic.state, timers.size], [last, "closed", 0]);
    }
  },
  async "a listener of a signal may close the topic: nothing is called afterwards"() {
    const calls = [];
    const onGap = ({ signal }) => {
      calls.push("onGap");
      signal.addEventListener("abort", () => topic.close());
      return new Promise(() => {});
    };
    const timers = new Set();
    const clock = {
      now: () => 0,
      random: () => 0,
      setTimeout: (call) => timers.add(call) && call,
      clearTimeout: (call) => timers.delete(call),
    };
    const options = { recover: true, since: "z.1", onGap, buffer: 1, clock };
    const topic = make(placedSocketOf(3, true), options);
    topic.addEventListener("gap", ({ position }) => calls.push(position));
    await new Promise((done) => setTimeout(done));
    assert.deepEqual([calls, topic.state, timers.size], [["onGap", "a.0"], "closed", 0]);
  },
  async "a listener of the signal of getToken may close the topic: it stays closed"() {
    const WebSocket = socketOf(1);
    let calls = 0;
    const topic = make(WebSocket, {
      getToken({ signal }) {
        if (++calls === 1) return "t";
        signal.addEventListener("abort", () => topic.close());
        return new Promise(() => {});
      },
    });
    const states = [];
    topic.addEventListener("state", (e) => states.push(e.state));
    for await (const each of topic) if (each.body === 1) break;
    topic.refresh();
    WebSocket.made[0].onclose({ code: 1001, reason: "" });
    assert.deepEqual([states, topic.state], [["connecting", "live", "closed"], "closed"]);
  },
  async "more messages than buffer for a loop are an error, and none is missing in silence"() {
    for (const [count, throws] of [[5, false], [6, true]]) {
      const topic = make(socketOf(count, () => topic.close()), { buffer: 5 });
      const bodies = [];
      const read = async () => {
        for await (const { body } of topic) bodies.push(body);
      };
      if (throws) await assert.rejects(read, { code: "buffer" });
      else await read();
      assert.deepEqual(bodies, throws ? [] : [1, 2, 3, 4, 5]);
      topic.close();
    }
  },
  async "messages that arrive before the first loop wait for it"() {
    const topic = make(placedSocketOf(3), { recover: true });
    await new Promise((done) => setTimeout(done));
    assert.equal(topic.position, "a.0");
    const bodies = [];
    for await (const { body, position } of topic) {
      bodies.push(body);
      assert.equal(topic.position, position);
      if (body === 3) break;
    }
    assert.deepEqual([bodies, topic.position], [[1, 2, 3], "a.3"]);
    topic.close();
  },
  async "the text of a body is exact whatever whitespace the server writes around it"() {
    const big = "12345678901234567890123";
    const frames = [
      `{"From":null,"Body":${big}}`,
      ` { "From" : "a\\"Body\\":1" ,\n "Body" : [${big}, "}"] } `,
      `{"From": null, "Body": {"From": 1, "Position": ${big}}, "Position": "a.1"}`,
    ];
    const topic = make(socketOf(0, (socket) => frames.forEach((data) => socket.onmessage({ data }))));
    const texts = [];
    for await (const { text } of topic) if (texts.push(text) === frames.length) break;
    topic.close();
    const wanted = [big, `[${big}, "}"]`, `{"From": 1, "Position": ${big}}`];
    assert.deepEqual(texts, wanted);
  },
  async "messages wait from the call of the iterator's function on"() {
    const WebSocket = socketOf(0);
    const topic = make(WebSocket);
    topic.addEventListener("message", () => {});
    await new Promise((done) => setTimeout(done));
    const loop = topic[Symbol.asyncIterator]();
    WebSocket.made[0].receive({ From: null, Body: 1 });
    await new Promise((done) => setTimeout(done));
    assert.equal((await loop.next()).value.body, 1);
    topic.close();
  },
  async "an iterator that returns before its first turn holds no position"() {
    const topic = make(placedSocketOf(3), { recover: true });
    const loop = topic[Symbol.asyncIterator]();
    await loop.return();
    await new Promise((done) => setTimeout(done));
    assert.equal(topic.position, "a.3");
    assert.equal((await loop.next()).done, true);
    topic.close();
  },
  async "with a listener no message waits for a later loop"() {
    const topic = make(placedSocketOf(3), { recover: true });
    const heard = [];
    topic.addEventListener("message", (e) => heard.push(e.body));
    await new Promise((done) => setTimeout(done));
    assert.deepEqual([heard, topic.position], [[1, 2, 3], "a.3"]);
    topic.close();
    for await (const { body } of topic) assert.fail(body);
  },
  async "more messages than buffer before the first loop are an error, and keep the position"() {
    for (const [count, throws] of [[5, false], [9, true]]) {
      const topic = make(placedSocketOf(count), { recover: true, buffer: 5 });
      await new Promise((done) => setTimeout(done));
      assert.equal(topic.position, "a.0");
      const loop = topic[Symbol.asyncIterator]();
      if (throws) await assert.rejects(() => loop.next(), { code: "buffer" });
      else assert.equal((await loop.next()).value.body, 1);
      topic.close();
    }
  },
  async "a loop over its buffer leaves the position to a listener"() {
    const topic = make(placedSocketOf(9), { recover: true, buffer: 5 });
    topic.addEventListener("message", () => {});
    const loop = topic[Symbol.asyncIterator]();
    await new Promise((done) => setTimeout(done));
    assert.equal(topic.position, "a.9");
    await assert.rejects(() => loop.next(), { code: "buffer" });
    topic.close();
  },
  async "a loop over its buffer leaves the position to another loop"() {
    const WebSocket = placedSocketOf(0);
    const topic = make(WebSocket, { recover: true, buffer: 5 });
    const [abandoned, loop] = [topic[Symbol.asyncIterator](), topic[Symbol.asyncIterator]()];
    await new Promise((done) => setTimeout(done));
    const positions = [];
    for (let n = 1; n <= 9; n++) {
      WebSocket.made[0].receive({ From: null, Body: n, Position: `a.${n}` });
      await loop.next();
      positions.push(topic.position);
    }
    assert.deepEqual(positions, ["a.0", "a.0", "a.0", "a.0", "a.0", "a.0", "a.7", "a.8", "a.9"]);
    await assert.rejects(() => abandoned.next(), { code: "buffer" });
    topic.close();
  },
  async "what is not a token is a getToken that failed, and is called again"() {
    const values = [{}, 10n, undefined, 42, Symbol("x"), "", "t"];
    const topic = make(socketOf(1), { getToken: () => values.shift(), minDelay: 1, maxDelay: 1 });
    const errors = [];
    const whys = [];
    topic.addEventListener("error", ({ error }) => errors.push([error.code, error.message]));
    topic.addEventListener("state", (e) => e.state === "waiting" && whys.push([e.code, e.reason]));
    for await (const each of topic) if (each.body === 1) break;
    topic.close();
    const texts = ["object", "bigint", "undefined", "number", "symbol"].map(
      (type) => `getToken failed: getToken returned a ${type}, not a string`,
    );
    texts.push("getToken failed: getToken returned no token");
    assert.deepEqual(errors, texts.map((text) => ["getToken", text]));
    assert.deepEqual(whys, texts.map((text) => [undefined, text]));
  },
  async "values without a text may be thrown"() {
    const thrown = () => [Symbol("x"), Object.create(null), undefined, { get message() { throw 1; } }];
    const texts = ["Symbol(x)", "object", "undefined", "object"];
    const tokens = thrown();
    const gaps = thrown();
    const errors = [];
    const topic = make(placedSocketOf(1, true), {
      recover: true,
      since: "z.1",
      minDelay: 1,
      maxDelay: 1,
      async getToken() {
        if (tokens.length) throw tokens.shift();
        return "t";
      },
      onGap() {
        if (gaps.length) throw gaps.shift();
      },
    });
    topic.addEventListener("error", ({ error }) => errors.push(error.message));
    for await (const each of topic) if (each.body === 1) break;
    topic.close();
    const wanted = ["getToken", "onGap"].flatMap((name) => texts.map((text) => `${name} failed: ${text}`));
    assert.deepEqual(errors, wanted);
  },
  async "a WebSocket class that throws a value without a text is final"() {
    const topic = make(class { constructor() { throw Object.create(null); } });
    await assert.rejects(() => topic[Symbol.asyncIterator]().next(), { code: "failed", message: "object" });
  },
  async "the event of the state waiting says why"() {
    const reply = (socket, Reason) =>
      socket.receive({ Response: "AccessToken", Result: "Failed", Reason });
    for (const [wanted, afterwards] of [
      [[1001, "Going away"], (socket) => socket.onclose({ code: 1001, reason: "Going away" })],
      [[1008, "Session expired"], (socket) => reply(socket, "Session expired")],
      [[undefined, "Service unavailable"], null],
    ]) {
      const Other = class extends socketOf(0) {
        send() {
          queueMicrotask(() => reply(this, "Service unavailable"));
        }
      };
      const topic = make(afterwards ? socketOf(0, afterwards) : Other);
      const event = await new Promise((done) =>
        topic.addEventListener("state", (e) => e.state === "waiting" && done(e)),
      );
      topic.close();
      assert.deepEqual([event.code, event.reason], wanted);
    }
  },
  async "a refused handshake has the runtime's text as its reason, and both events count once"() {
    for (const hasClose of [true, false]) {
      const WebSocket = class {
        constructor() {
          queueMicrotask(() => {
            this.onerror({ message: "404" });
            if (hasClose) this.onclose?.({ code: 1006, reason: "" });
          });
        }
        close() {}
      };
      const seen = [];
      const topic = make(WebSocket, { minDelay: 1e9 });
      topic.addEventListener("state", (e) => seen.push([e.state, e.code, e.reason]));
      await new Promise((done) => setTimeout(done));
      assert.deepEqual(seen, [["connecting", undefined, undefined], ["waiting", 1006, "404"]]);
      topic.close();
    }
  },
  async "an error event after the handshake has no effect"() {
    const WebSocket = socketOf(1, (socket) => socket.onerror({}));
    const topic = make(WebSocket);
    for await (const each of topic) if (each.body === 1) break;
    await new Promise((done) => setTimeout(done));
    assert.equal(topic.state, "live");
    topic.close();
    WebSocket.made[0].onerror({});
    assert.equal(topic.state, "closed");
  },
  async "a listener may close the topic in any state"() {
    for (const state of ["connecting", "live"]) {
      const WebSocket = socketOf(3);
      const topic = make(WebSocket);
      const seen = [];
      topic.addEventListener("message", (e) => seen.push(e.body));
      topic.addEventListener("state", (e) => {
        seen.push(e.state);
        if (e.state === state) topic.close();
      });
      await new Promise((done) => setTimeout(done));
      assert.deepEqual(seen, state === "live" ? ["connecting", "live", "closed"] : [state, "closed"]);
      assert.deepEqual(WebSocket.made.map((each) => each.isClosed), state === "live" ? [true] : []);
    }
  },
  async "a listener of a message may close the topic: no other message follows"() {
    const topic = make(socketOf(3));
    const seen = [];
    topic.addEventListener("message", (e) => seen.push(e.body) && topic.close());
    await new Promise((done) => setTimeout(done));
    assert.deepEqual(seen, [1]);
  },
  async "options that are undefined have their defaults"() {
    const topic = make(socketOf(1), { maxDelay: undefined, buffer: undefined, WebSocket: undefined });
    topic.addEventListener("error", (e) => assert.fail(e.error));
    assert.equal(topic.state, "idle");
    topic.close();
  },
  async "a topic without getToken is a mistake"() {
    assert.throws(() => new Topic("ws://127.0.0.1/", {}), TypeError);
    assert.throws(() => new Topic("ws://127.0.0.1/"), TypeError);
  },
  async "an address that is no URL fails"() {
    const topic = new Topic("http://[", { getToken: () => "t" });
    await assert.rejects(() => topic[Symbol.asyncIterator]().next(), { code: "failed" });
  },
};

for (const [name, run] of Object.entries(cases)) {
  try {
    await run();
  } catch (error) {
    throw new Error(name, { cause: error });
  }
}
console.log(Object.keys(cases).length);
