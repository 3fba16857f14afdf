"""System calls and nothing else: durable writes, locks, mounts, targets, disk figures, processes without rights.

Rule of this room: mechanism, no policy. It knows neither models nor volumes, and no path of the store except those it
is handed. Everything goes through libc in this process; the only program it ever starts is its own interpreter, as the
helper that forks processes without rights (`workers`). Calls release the GIL and block only in the kernel. Failures are
`OSError` as the kernel gave them; only `target` speaks in `modelmount.errors`, because there the text of a request is
judged.
"""
