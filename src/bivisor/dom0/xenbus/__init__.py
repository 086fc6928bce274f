"""The back-end's side of XenBus: rings, connections with front-ends, and the service that makes them from the store."""
