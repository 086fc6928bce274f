"""The command line: thin, and quick to start. What it does is in `bivisor.toolstack` and `bivisor.image`."""
