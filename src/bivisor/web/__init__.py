"""The page that shows the running machine: a server on the loopback for one browser's owner, and what it serves.

It is a client of hosts and machines as the commands are: by their sockets, from a process of its own, so that neither
its work nor its end touches a guest.
"""
