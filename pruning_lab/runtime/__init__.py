"""General tools: device, processes, files, random streams, model state, terminal output."""
