"""The ACPI tables that describe the PC to its guest."""

from bivisor.platform.acpi.tables import BASE, AcpiTables, Board, build_reduced_tables, build_tables

__all__ = ["BASE", "AcpiTables", "Board", "build_reduced_tables", "build_tables"]
