"""The hypervisor of the Xen architecture: domains, hypercalls, event channels, grant tables."""
