"""The worker: what runs on a node, takes items under a lease and runs their commands."""
