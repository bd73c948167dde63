"""Helpers for the integration tests: servers, hostile clients and measurements."""
