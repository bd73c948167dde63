"""Adapters: the HTTP side."""
