"""XenStore: the tree of names and values that domains and tools configure one another by (docs/misc/xenstore.txt).

`wire`, `path` and `tree` are pure; `store` and `transaction` are what a request sees; `server` answers requests and
does no I/O; `socket_server` and `ring` carry bytes.
"""
