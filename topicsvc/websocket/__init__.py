"""Adapters: Autobahn's side: one connection, and the house of all."""
