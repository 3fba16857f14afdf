"""The gRPC door: CSI and the kubelet's registration, and the only room that knows gRPC and the stubs.

Rules: a behaviour takes a typed message and a `ports.Call`, returns a message, and raises `errors`; it never sees gRPC.
`status` alone turns errors into codes and `interceptors` surrounds every call. Requests are logged through `redact`
only. Nothing here waits while it holds the last workers: publishes pass a gate, and calls that ask nobody run on
threads of their own. What a volume is, `volumes` decides.
"""
