"""Validates JWTs of OAuth 2.0 servers, with the public keys that the servers publish."""
