"""Message brokers with one interface. Each is also a Twisted service."""
