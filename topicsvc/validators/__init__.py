"""Validates tokens: three kinds of validators, and wrappers around them."""
