"""The ActiveMQ broker, over STOMP 1.2."""
