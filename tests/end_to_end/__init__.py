"""End-to-end tests: ``twistd topicsvc`` on loopback ports, plain and TLS, with real clients."""
