"""Events within a Node, and notices to devices: a bus, ways to reach devices, and who sees to it that notices go."""
