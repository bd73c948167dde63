"""The public HTTP side: the site, sending, and the WebSocket opening handshake."""
