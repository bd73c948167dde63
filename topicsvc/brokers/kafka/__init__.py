"""The Kafka broker, over librdkafka."""
