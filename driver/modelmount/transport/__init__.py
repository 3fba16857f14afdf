"""HTTP over TCP and TLS: connections, redirects, bodies, and when to try again.

Rule of this room: it knows bytes and hosts, no registry and no model, and it is the only one that imports urllib3.
Nothing is read from the process's environment: no proxy, no netrc. What a connection may reach follows from the admin's
settings alone (`trust`). Every failure is one of `modelmount.errors`, and no message has a query string or a header's
value in it. Nothing is tried again here, except once on a kept connection that the other side had closed meanwhile.
"""
