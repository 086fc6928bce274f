"""Emulated hardware: the devices of a PC, attached to buses. See platform/pc.py for the board."""
