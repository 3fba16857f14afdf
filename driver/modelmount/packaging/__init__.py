"""Artifacts on their way out: made from files into a registry, or taken from a registry into an image layout.

Rule of this room: it reads what a person names and writes to where that person may write; the store is not its
business. What goes out is decided by the files alone, so that the same files are the same digest, and everything that
is sent or written down was hashed first. A way to package is one file; `formats` reads what it makes.
"""
