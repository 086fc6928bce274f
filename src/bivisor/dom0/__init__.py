"""The control domain: XenStore, XenBus and back-ends, which reach other domains by hypercalls and nothing else."""
