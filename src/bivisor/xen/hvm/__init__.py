"""What Xen itself is to an HVM domain: interrupt controllers, timers, and the way of every other access to a device
model."""
