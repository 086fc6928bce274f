"""The real devices behind the virtual ones: the only place that opens files, terminals and network devices."""
