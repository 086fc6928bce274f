"""The keys of xl.cfg(5) that Bivisor does not have, each with the reason that a person is told."""

_HVM = "HVM domains have nothing of the kind here"
_REASONS: dict[str, str] = {
    "acpi_firmware altp2m device_model_override firmware_override": _HVM,
    "keymap nestedhvm soundhw spice stubdomain_memory timer_mode usbdevice": _HVM,
    "bootloader bootloader_args e820_host pvshim vfb vkb": "it is for PV domains, which are not there yet",
    "dtdev iomem ioports irqs passthrough pci rdm usbctrl usbdev": "Bivisor hands no devices of the host to domains",
    "cap cpu_weight cpus cpus_soft nodes pool vnuma": "the host's own scheduler places processors",
    "max_grant_frames max_maptrack_frames": "the limit is that of Xen's default",
    "init_seclabel seclabel": "there is no XSM policy",
    "channel p9 pvcalls vdispl vsnd vtpm": "there is no back-end of that kind",
    "cpuid tsc_mode": "it is the engine's",
    "claim_mode": "memory is given when it is touched",
    "nomigrate": "there is no migration",
    "driver_domain": "there are no driver domains yet",
    "device_tree": "it is for Arm",
    "on_soft_reset": "a domain cannot be reset in place",
}

UNSUPPORTED: dict[str, str] = {key: why for keys, why in _REASONS.items() for key in keys.split()}
"""Key to reason."""
