"""The API server, where there is one: what pods are told in their events, and the few objects that are read or changed.

Rule of this room: nothing depends on it. Without a service account's token, a right or an answer the driver serves as
before, and says once what is missing. `api` is the only module that knows lightkube; it is imported where a
configuration wants something of the API server, because that takes memory and time.
"""
