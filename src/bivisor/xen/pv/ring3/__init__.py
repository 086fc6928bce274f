"""PV domains whose kernel runs at CPL 3, beside its programs, with a part of the hypervisor at CPL 0 (`engine kvm`)."""
