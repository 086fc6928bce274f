"""From what a person asks for to a machine that runs: options, devices, consoles, and what can be seen meanwhile."""
