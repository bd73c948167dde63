"""``topicsvc doctor``: tests the endpoints, broker and validator of a configuration."""
