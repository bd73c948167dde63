"""Token validators around another one: caches, timeouts, queues, counters."""
