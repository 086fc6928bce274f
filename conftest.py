"""The plugin for pytest that this tree has, where it is not installed, and so not known by its entry point."""

from importlib.metadata import entry_points

if "bivisor" not in entry_points(group="pytest11").names:
    pytest_plugins = ["bivisor.testing.plugin"]
