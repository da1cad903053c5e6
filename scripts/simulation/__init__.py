"""The simulator: the machines that production runs, under virtual time and faults drawn from a seed.

clock.py      one heap of plain tuples, and the time
trace.py      what happened, as a running digest and as the last lines of a node
network.py    what TCP does to messages: order, delay, stall, reset, half-open, cut
dialling.py   how a connection comes to be
terrain.py    where processes are, delays, cuts
cluster.py    processes: started, killed, paused, slow; the seam to the machines
faults.py     the options of a run, drawn from its seed
injection.py  when which fault strikes
view.py       the global view: whose key it is, whether ring and trees are right
checkers.py   P3, losses and false deaths, judged as they happen
workload.py   routed messages, and the look-ups that measure recovery
transfers.py  records on the move, and the stores that they move between
agents.py     what agents do with records and orders; learning.py: what they learn, as hashes
manager.py    the root's decisions, carried out; standby.py: a standby's; application.py: what these and agents share
managers.py   who roots the tree: lives, standbys, and what strikes them
durability.py P2 and P6, contributions.py P1, P2 and P5: judged as things happen
rounds.py     one run with records and rounds; round_report.py: what it found
run.py        one run: build, faults, heal, convergence
report.py     what a run found, for people and for programs
"""
