"""Where it runs: a cluster of several nodes on this machine, and what to look at on any before a run."""
