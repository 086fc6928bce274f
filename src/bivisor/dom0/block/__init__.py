"""The block back-end: disks for domains over the rings of blkif.h."""
