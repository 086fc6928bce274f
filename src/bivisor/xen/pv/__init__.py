"""PV domains: what Xen does for a kernel that knows it has no privilege (xen.h, arch-x86/xen.h)."""
