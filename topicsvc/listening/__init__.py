"""Server endpoints, their TLS certificates, and the PROXY protocol."""
