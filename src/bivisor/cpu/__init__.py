"""The contract of a processor, its engines `kvm` and `soft`, and how one is chosen."""
