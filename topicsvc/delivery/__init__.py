"""Fan-out of messages: from one subscription for each topic to the sockets of its members."""
