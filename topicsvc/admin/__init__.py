"""The operator's HTTP side: health endpoints and Prometheus metrics."""
