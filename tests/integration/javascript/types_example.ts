// Type-checked by tsc, never run: each use of the API has the documented type.
import { send, Topic } from "topicsvc-client";
import type { SendError, State, TokenReason, TopicError } from "topicsvc-client";

const fetchToken = async (reason: TokenReason, signal: AbortSignal): Promise<string> =>
  (await fetch(`/token?reason=${reason}`, { signal })).text();

const topic = new Topic("wss://cell1.unit1.example/__topic/box1/col.topic.name", {
  getToken: ({ reason, signal }) => fetchToken(reason, signal),
  recover: true,
  since: localStorage.getItem("position"),
  onGap: async ({ since, position, signal }) => {
    const places: (string | null)[] = [since, position];
    await fetch("/state", { signal });
    return places;
  },
  minDelay: 500,
  maxDelay: 30000,
  connectTimeout: 10000,
  replyTimeout: 15000,
  buffer: 1000,
  WebSocket,
});
topic.addEventListener("message", (e) => {
  const text: string = e.text;
  const position: string | null = e.position;
  console.log(e.body.anything, text, e.from, position);
});
topic.addEventListener("state", (e) => {
  const state: State = e.state;
  const code: number | undefined = e.code;
  const reason: string | undefined = e.reason;
  console.log(state, code, reason);
});
topic.addEventListener("gap", ({ since, position }) => console.log(since, position));
topic.addEventListener("error", ({ error }) => {
  const known: TopicError = error;
  console.log(known.code, known.cause);
});

for await (const message of topic) {
  console.log(message.body);
  break;
}
const position: string | null = topic.position;
console.log(topic.state, position, topic.url);
topic.refresh();
topic.close();

try {
  await send("https://cell1.unit1.example/box1/col/topic/name", { n: [1, null] }, {
    getToken: async ({ reason }) => reason,
    signal: AbortSignal.timeout(10000),
  });
} catch (error) {
  const { status, code } = error as SendError;
  console.log(status, code);
}

// Mistakes are found.
// @ts-expect-error: getToken is missing
new Topic("wss://cell1.unit1.example/", {});
// @ts-expect-error: not a state
const unknown: State = "open";
// @ts-expect-error: a token is a string
await send("https://cell1.unit1.example/", 1, { getToken: () => 1 });
// @ts-expect-error: read-only
topic.position = unknown;
