"""All nodes from one host: a list of machines, and what is done on each of them over SSH."""
