// Receives from a real service, and reports all that the client does.
import { Topic } from "../../../clients/javascript/topicsvc-client.js";

/**
 * Start to receive.
 *
 * @param setup {url, tokens, options}: the topic's URL, the URL that returns a token, the options.
 * @param report called with [kind, value].
 */
export function receive({ url, tokens, options }, report) {
  const topic = new Topic(url, {
    ...options,
    async getToken({ reason, signal }) {
      report(["getToken", reason]);
      const response = await fetch(tokens, { method: "POST", body: reason, signal });
      return await response.text();
    },
  });
  topic.addEventListener("state", (e) => report(["state", e.state]));
  topic.addEventListener("message", (e) => report(["message", e.text]));
  topic.addEventListener("gap", (e) => report(["gap", [e.since, e.position]]));
  topic.addEventListener("error", (e) => report(["error", e.error.code]));
  return topic;
}
