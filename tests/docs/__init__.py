"""Tests that compare the documentation and the layers with the code."""
