"""The engine `kvm`: hardware virtualization through /dev/kvm."""

from bivisor.cpu.kvm.engine import KvmEngine
from bivisor.cpu.kvm.machine import KvmMachine
from bivisor.cpu.kvm.vcpu import KernelView, KvmVcpu

__all__ = ["KernelView", "KvmEngine", "KvmMachine", "KvmVcpu"]
