"""Reports: explain, text, JSON, debug files, the command line."""
