"""One client session: messages, state machine, Autobahn, keepalive, log."""
