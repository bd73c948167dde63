"""The operating system's side of a daemon: signals, systemd, memory, reactor lag."""
