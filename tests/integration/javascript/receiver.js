// Receives from a real service, and reports all that the client does.
import { send, Topic } from "../../../clients/javascript/topicsvc-client.js";

/**
 * Start to receive.
 *
 * @param setup {url, tokens, options, sends}: the topic's URL, the URL that returns a token, the
 *   options, and the URL and value of a message that is sent when the topic is live.
 * @param report called with [kind, value].
 */
export function receive({ url, tokens, options, sends }, report) {
  const fetchToken = async ({ reason, signal }) =>
    (await fetch(tokens, { method: "POST", body: reason, signal })).text();
  const topic = new Topic(url, {
    ...options,
    getToken(request) {
      report(["getToken", request.reason]);
      return fetchToken(request);
    },
    async onGap({ since, position }) {
      report(["onGap", [since, position]]);
    },
  });
  topic.addEventListener("state", (e) => report(["state", e.state]));
  topic.addEventListener("state", (e) => e.state === "waiting" && report(["code", e.code]));
  topic.addEventListener("state", async (e) => {
    if (e.state !== "live" || !sends) return;
    try {
      await send(sends.url, sends.value, { getToken: fetchToken });
      report(["sent", sends.value]);
    } catch (error) {
      report(["sent", `${error.status} ${error.code}`]);
    }
  });
  topic.addEventListener("message", (e) => report(["message", e.text]));
  topic.addEventListener("gap", (e) => report(["gap", [e.since, e.position]]));
  topic.addEventListener("error", (e) => report(["error", e.error.code]));
  return topic;
}
