"""A debugger's way into a guest: the remote serial protocol of gdb, for the machines of both architectures."""
