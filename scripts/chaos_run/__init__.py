"""Chaos on real processes: a training run, faults drawn from a seed, and what FMRec promises, checked from outside.

plan.py         the faults of a run, drawn from its seed before anything happens
cluster.py      two managers and the agents on several hosts, and who starts a manager again that ended
watching.py     what is seen of it from outside while it runs: status documents, and what the kernel says of each process
injection.py    the faults, done
run.py          one run: start, faults, healing, end; and the undisturbed one of the same seed
promises.py     what was seen, judged promise by promise
verdict.py      all of that, and the figures of the report
"""
