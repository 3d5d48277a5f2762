"""OUTPUT: its paths, its log of commits, and the one way to write it. README.md explains it."""
