"""Image formats: a file is recognised by its content and loaded into guest memory, ready to be entered."""

from bivisor.boot.cache import Cache, PayloadCache
from bivisor.boot.image import LINUX64, MULTIBOOT, PVH, RAW, Image
from bivisor.boot.loader import inspect, load
from bivisor.boot.placement import Range
from bivisor.boot.request import Entry, Module

__all__ = [
    "LINUX64",
    "MULTIBOOT",
    "PVH",
    "RAW",
    "Cache",
    "Entry",
    "Image",
    "Module",
    "PayloadCache",
    "Range",
    "inspect",
    "load",
]
