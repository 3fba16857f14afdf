"""Pulls as jobs: resolve a reference, fetch what is missing, commit, link the tree; whoever needs the model waits on
the job.

Rule of this room: a job belongs to the node, not to a call. Calls join and leave; bytes that were fetched stay fetched.
A job never waits for one ingest while it holds another.
"""
