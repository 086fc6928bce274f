"""The hosted architecture: a virtual machine is a process, a virtual processor a thread, devices are in user space."""

from bivisor.kvm.outcome import End, Outcome
from bivisor.kvm.vm import VirtualMachine

__all__ = ["End", "Outcome", "VirtualMachine"]
