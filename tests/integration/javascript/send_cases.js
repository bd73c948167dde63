// Cases of `send` with a scripted server, in virtual time; prints how many ran.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { send } from "../../../clients/javascript/topicsvc-client.js";

const realFetch = globalThis.fetch;
const URL = "https://cell1.unit1.example/box1/col/topic/name";

/** Send with these responses; returns what happened. */
async function script(responses, value = { n: 1 }, signal = undefined, onPause = undefined) {
  const seen = { requests: [], reasons: [], pauses: [] };
  globalThis.fetch = async (url, { method, headers, body }) => {
    seen.requests.push([method, url, headers.Authorization, headers["Content-Type"], body]);
    const [status, retryAfter, code] = responses.shift();
    const message = code && JSON.stringify({ code, message: { lang: "en", value: "No." } });
    return new Response(message, { status, headers: retryAfter ? { "Retry-After": retryAfter } : {} });
  };
  const clock = {
    setTimeout(call, ms) {
      seen.pauses.push(ms);
      if (!signal || onPause) call(onPause?.());
      return "timer";
    },
    clearTimeout(timer) {
      seen.cleared = timer;
    },
  };
  const getToken = async ({ reason }) => {
    seen.reasons.push(reason);
    return `token-${reason}`;
  };
  try {
    await send(URL, value, { getToken, clock, signal });
  } catch (error) {
    seen.error = error;
  }
  return seen;
}

const cases = {
  async "an accepted message is sent once"() {
    const { requests, reasons, error } = await script([[200]], { n: [1, null] });
    assert.deepEqual(requests, [
      ["POST", URL, "Bearer token-first", "application/json", '{"n":[1,null]}'],
    ]);
    assert.deepEqual([reasons, error], [["first"], undefined]);
  },
  async "a refused token is replaced once"() {
    const { requests, reasons, error } = await script([[401, null, "PR401-AU-0006"], [200]]);
    assert.deepEqual(requests.map(([, , token]) => token), ["Bearer token-first", "Bearer token-refused"]);
    assert.deepEqual([reasons, error], [["first", "refused"], undefined]);
  },
  async "a second refused token is an error"() {
    const { reasons, error } = await script([[401], [401, null, "PR401-AU-0006"]]);
    assert.deepEqual(reasons, ["first", "refused"]);
    assert.deepEqual([error.status, error.code, error.message], [401, "PR401-AU-0006", "HTTP 401: No."]);
  },
  async "429 is tried again after Retry-After"() {
    const { requests, pauses, error } = await script([[429, "7"], [429, "20"], [200]]);
    assert.deepEqual([requests.length, pauses, error], [3, [7000, 20000], undefined]);
  },
  async "429 without a readable Retry-After is tried again after 1 s"() {
    const { pauses, error } = await script([[429], [429, "soon"], [200]]);
    assert.deepEqual([pauses, error], [[1000, 1000], undefined]);
  },
  async "pauses of more than 60 s together are an error"() {
    const { pauses, error } = await script([[429, "40"], [429, "21", "PR429-SV-0001"]]);
    assert.deepEqual([pauses, error.status, error.code], [[40000], 429, "PR429-SV-0001"]);
  },
  async "503 is an error: the message may have been sent"() {
    const { requests, error } = await script([[503, "1", "PR503-SV-0002"]]);
    assert.deepEqual([requests.length, error.status, error.code], [1, 503, "PR503-SV-0002"]);
  },
  async "a response that is not JSON is an error with its status"() {
    const { error } = await script([[502]]);
    assert.deepEqual([error.status, error.code, error.message], [502, undefined, "HTTP 502: "]);
  },
  async "a redirect is an error, and nothing is sent to its target"() {
    const paths = [];
    const server = createServer((request, response) => {
      paths.push(request.url);
      const status = Number(request.url.slice(1)) || 200;
      response.writeHead(status, { Location: "/target", Connection: "close" }).end();
    });
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    globalThis.fetch = realFetch;
    const statuses = [301, 302, 303, 307, 308];
    for (const status of statuses) {
      const url = `http://127.0.0.1:${server.address().port}/${status}`;
      await assert.rejects(send(url, 1, { getToken: () => "t" }), {
        message: `HTTP ${status}: a redirect`,
        status,
      });
    }
    server.close();
    assert.deepEqual(paths, statuses.map((status) => `/${status}`));
  },
  async "a redirect whose status a browser hides is an error"() {
    globalThis.fetch = async (_, { redirect }) => {
      assert.equal(redirect, "manual");
      return { ok: false, status: 0, headers: new Headers(), json: () => Promise.reject() };
    };
    await assert.rejects(send(URL, 1, { getToken: () => "t" }), {
      message: "HTTP 0: a redirect",
      status: 0,
    });
  },
  async "what is not a token is an error, and nothing is sent"() {
    globalThis.fetch = () => assert.fail("sent");
    for (const [value, text] of [
      [{}, "a object, not a string"],
      [undefined, "a undefined, not a string"],
      [10n, "a bigint, not a string"],
      ["", "no token"],
    ]) {
      const message = `getToken returned ${text}`;
      await assert.rejects(send(URL, 1, { getToken: () => value }), { name: "TypeError", message });
    }
  },
  async "the signal ends a getToken that never returns"() {
    for (const wanted of ["first", "refused"]) {
      globalThis.fetch = async () => new Response(null, { status: 401 });
      const abort = new AbortController();
      const getToken = ({ reason, signal }) => {
        assert.equal(signal, abort.signal);
        if (reason !== wanted) return "t";
        setTimeout(() => abort.abort());
        return new Promise(() => {});
      };
      await assert.rejects(send(URL, 1, { getToken, signal: abort.signal }), { name: "AbortError" });
    }
  },
  async "after a signal that was aborted before, getToken is not called"() {
    const getToken = () => assert.fail("called");
    const signal = AbortSignal.abort();
    await assert.rejects(send(URL, 1, { getToken, signal }), { name: "AbortError" });
  },
  async "the signal ends a pause"() {
    const abort = new AbortController();
    const sent = script([[429, "50"]], 1, abort.signal);
    await new Promise((done) => setTimeout(done));
    abort.abort();
    const { requests, error, cleared } = await sent;
    assert.deepEqual([requests.length, error.name, cleared], [1, "AbortError", "timer"]);
  },
  async "a signal that aborts while the response is read ends the call without a pause"() {
    for (const status of [401, 429, 503]) {
      const abort = new AbortController();
      const original = Response.prototype.json;
      Response.prototype.json = async () => abort.abort();
      try {
        const { requests, reasons, pauses, error } = await script([[status, "50"]], 1, abort.signal);
        assert.deepEqual([requests.length, reasons, pauses], [1, ["first"], []]);
        assert.equal(error.name, "AbortError");
      } finally {
        Response.prototype.json = original;
      }
    }
  },
  async "after a pause no listener of the signal is left"() {
    const abort = new AbortController();
    let listeners = 0;
    const [add, remove] = ["addEventListener", "removeEventListener"].map((name) =>
      abort.signal[name].bind(abort.signal),
    );
    abort.signal.addEventListener = (...all) => (listeners++, add(...all));
    abort.signal.removeEventListener = (...all) => (listeners--, remove(...all));
    const during = [];
    const responses = [[429, "7"], [429, "7"], [200]];
    const { error } = await script(responses, 1, abort.signal, () => during.push(listeners));
    assert.deepEqual([during, listeners, error], [[1, 1], 0, undefined]);
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
