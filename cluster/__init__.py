"""Where it runs: a cluster of several nodes on this machine, and what clouds and Kubernetes need to make one."""
