"""The Redis broker: streams keep messages, channels deliver them."""
