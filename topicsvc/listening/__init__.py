"""Adapters: what clients connect to: endpoints, their certificates, proxies before them."""
