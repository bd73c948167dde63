"""Adapters: what carries the messages. Each is also a Twisted service."""
