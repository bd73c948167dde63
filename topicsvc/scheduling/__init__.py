"""Deadlines, rates and queues in reactor time. Nothing here depends on topics."""
