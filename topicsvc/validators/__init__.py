"""Adapters: who judges tokens."""
