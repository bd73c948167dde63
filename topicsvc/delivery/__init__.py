"""Fan-out: from one broker subscription a topic to the sockets of its members."""
