"""Agentless nodes: items run on hosts that have sshd and bash, and no PPSS, by a worker on the master.

One SSH connection per node. One of its channels is the agent, a bash program (node_agent.sh) that starts and kills
commands; files come and go through others, as tar streams.
"""
