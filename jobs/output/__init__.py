"""OUTPUT: its paths, its log of commits, and the only way to write it. See README.md."""
