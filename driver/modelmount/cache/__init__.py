"""The cache's budget: what is held and by whom, what goes when space is short, in which order, and how it goes.

Rule of this room: it alone removes what is complete, in two short sections under the exclusive store lock, each with
every victim looked at again; what is mounted, published, pinned or being pulled never goes. Bytes are deleted outside
the lock.
"""
