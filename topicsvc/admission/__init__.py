"""Limits on untrusted clients; docs/security.md explains each."""
