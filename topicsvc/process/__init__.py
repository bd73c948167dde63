"""The daemon and its operating system: signals, systemd, memory, reactor lag, process setup."""
