"""Virtio 1.2 devices: the split queue, the PCI transport and the devices themselves."""
