"""The host as a process of its own: where its state is, how it is started and spoken to (`bivisor host`)."""
