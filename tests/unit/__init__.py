"""Unit tests of the modules of topicsvc, in the same packages."""
