"""Time and reactor iterations: deadlines, rates, queues. Knows nothing of topics."""
