/** `idle` until the next microtask; `closed` and `failed` are final. */
export type State = "idle" | "connecting" | "live" | "waiting" | "closed" | "failed";

/**
 * Why a token is needed.
 *
 * - `first`: there was no token yet.
 * - `expiring`: the old token expires soon, or has expired.
 * - `refused`: the service refused the last token. Do not return the same one.
 */
export type TokenReason = "first" | "expiring" | "refused";

export interface TokenRequest {
  reason: TokenReason;
  /** Aborted when the token is not needed any more. */
  signal: AbortSignal;
}

/** Messages between these positions may be missing. */
export interface Gap {
  /** The last position before the gap; null if there was none. */
  since: string | null;
  /** Messages go on after this position; null if the service has no positions. */
  position: string | null;
}

/** What the client uses of a `WebSocket`. */
export interface WebSocketLike {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

/** Time and randomness, for tests. Times are in milliseconds. */
export interface Clock {
  now(): number;
  setTimeout(call: () => void, ms: number): unknown;
  clearTimeout(timer: any): void;
  random(): number;
}

export interface TopicOptions {
  /**
   * Return an access token. If it fails, or returns anything but a text that is not empty, it is
   * called again after a pause. After 30 s without a result, the signal is aborted and the call has
   * failed.
   */
  getToken(request: TokenRequest): string | Promise<string>;
  /** Ask the service for the messages that were missed between two connections. Default: true. */
  recover?: boolean;
  /** A position that was saved earlier, to go on after it. */
  since?: string | null;
  /**
   * Load the state anew. Messages wait meanwhile. If it fails, or if more than `buffer` messages
   * wait, it is called again after a pause.
   */
  onGap?(gap: Gap & { signal: AbortSignal }): unknown;
  /** The bound of the first pause, in milliseconds. Default: 500. */
  minDelay?: number;
  /** The bound of the longest pause, in milliseconds. Default: 30000. */
  maxDelay?: number;
  /** The longest time for the opening handshake, in milliseconds. Default: 10000. */
  connectTimeout?: number;
  /** The longest time for the reply to a token, in milliseconds. Default: 15000. */
  replyTimeout?: number;
  /** How many messages may wait for `onGap`, or in one `for await` loop. Default: 1000. */
  buffer?: number;
  /** The class to connect with. Default: that of the runtime. */
  WebSocket?: new (url: string) => WebSocketLike;
  clock?: Clock;
}

export interface MessageEvent extends Event {
  /** The value that was sent. */
  readonly body: any;
  /** Its JSON text as it was sent: numbers of any size are exact. */
  readonly text: string;
  /** The URL of the sending cell. */
  readonly from: string | null;
  /** The place of the message in the topic; null without positions. */
  readonly position: string | null;
}

export interface StateEvent extends Event {
  readonly state: State;
  /** Of `waiting`: the close code; undefined if the client gave the connection up itself. */
  readonly code?: number;
  /** Of `waiting`: why there is no connection. */
  readonly reason?: string;
}

export interface GapEvent extends Event, Gap {}

/**
 * What an error is about; `refused` and `failed` are final.
 *
 * - `getToken`, `onGap`: the function failed; the error is in `cause`.
 * - `positions`: the service has no positions, so `recover` has no effect.
 * - `message`: a message was not text, or not JSON.
 * - `refused`: the token was refused, and the fresh one too.
 * - `failed`: another connection would end in the same way.
 * - `buffer`: thrown by a `for await` loop that reads too slowly.
 */
export type TopicErrorCode =
  | "getToken"
  | "onGap"
  | "positions"
  | "message"
  | "refused"
  | "failed"
  | "buffer";

export interface TopicError extends Error {
  code: TopicErrorCode;
}

export interface ErrorEvent extends Event {
  readonly error: TopicError;
}

export interface TopicEvents {
  message: MessageEvent;
  state: StateEvent;
  gap: GapEvent;
  error: ErrorEvent;
}

/** Receives from one topic: connects, gets and renews tokens, connects again. */
export class Topic extends EventTarget implements AsyncIterable<MessageEvent> {
  /** @param url the WebSocket URL of the topic. */
  constructor(url: string | URL, options: TopicOptions);
  readonly url: string;
  readonly state: State;
  /**
   * The place behind the last message that the application has; null without positions. While
   * `for await` loops run, behind the last message that the slowest of them has returned. Save it in
   * the loop: what waits for a loop is dropped when the loop ends early. A loop that exceeds `buffer`
   * does not count while another one or a listener reads.
   */
  readonly position: string | null;
  /** Get a new token and present it at once, or after the reply that is under way. */
  refresh(): void;
  /** Close the connection for good. Loops still return what waits for them. */
  close(): void;
  /**
   * Messages from now on; the first loop also has those that arrived before it, at most `buffer`,
   * unless there is a listener of `message`. Ends when the topic is closed, and throws when it has
   * failed.
   */
  [Symbol.asyncIterator](): AsyncGenerator<MessageEvent, void, void>;
  addEventListener<K extends keyof TopicEvents>(
    type: K,
    listener: ((this: Topic, event: TopicEvents[K]) => any) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof TopicEvents>(
    type: K,
    listener: ((this: Topic, event: TopicEvents[K]) => any) | null,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

export interface SendOptions {
  /** Return an access token that may send. */
  getToken(request: { reason: "first" | "refused"; signal?: AbortSignal }): string | Promise<string>;
  /** Ends the call: `getToken`, the request, and a pause. Nothing else limits their time. */
  signal?: AbortSignal;
}

export interface SendError extends Error {
  /** The HTTP status; 0 after a redirect in a browser. */
  status: number;
  /** The code in the body, as "PR403-AU-0002"; undefined if there is none. */
  code?: string;
}

/**
 * Send one JSON value to a topic. Resolves when the broker has accepted it.
 *
 * After 401, `getToken` is called once with `refused`. After 429, the message is sent again after
 * `Retry-After`, for at most 60 s. After 503 it is not certain that the message was not sent. Redirects
 * are errors: they are not followed.
 *
 * @param url the send URL of the topic.
 * @param value what `JSON.stringify` takes.
 * @throws SendError the service refused it.
 */
export function send(url: string | URL, value: unknown, options: SendOptions): Promise<void>;
