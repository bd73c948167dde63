"""The real-time side of Personium stream collections, as a Twisted service."""

__version__ = "0.1.0"
