"""Where it runs: files for `ray up`, a cluster of several nodes on this machine, and what to look at before a run."""
