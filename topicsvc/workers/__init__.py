"""Worker processes: the parent, the control sockets, the sockets that workers listen on."""
