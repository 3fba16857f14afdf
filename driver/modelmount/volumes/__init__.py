"""Volumes: what a pod asks for, the lease that records it, the mount that shows it.

Rule of this room: a lease stands before its mount and goes after it. What a volume shows is decided at its first OK and
stays until unpublish. Nothing is ever deleted recursively near a target.
"""
