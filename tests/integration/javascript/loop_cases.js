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
