"""Numbers and structures of Xen's public headers (xen/include/public, version 4.17): data only."""
