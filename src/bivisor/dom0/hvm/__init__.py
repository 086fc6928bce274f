"""The device model of an HVM domain: what QEMU is to Xen."""
