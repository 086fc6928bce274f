"""Tests with guests: the plugin for pytest (`plugin.py`), which is there where Bivisor is installed: docs/api.md."""
