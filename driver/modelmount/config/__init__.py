"""Settings: one schema, read from a TOML file, then `MODELMOUNT_*` environment variables, then command-line flags;
later ones win.

Rule of this room: every knob is documented on its field in `schema` and nowhere else; `read` reports *all* mistakes at
once, so that an admin fixes a file in one go. Nothing here is a secret: credentials lie in files that settings name.
"""

from modelmount.config.live import Live
from modelmount.config.reading import DEFAULT_CONFIG_PATH, Effective, load, read
from modelmount.config.schema import Auth, Cache, Kubernetes, Limits, Publish, Pull, Registry, Settings, as_dict

__all__ = [
    "DEFAULT_CONFIG_PATH",
    "Auth",
    "Cache",
    "Effective",
    "Kubernetes",
    "Limits",
    "Live",
    "Publish",
    "Pull",
    "Registry",
    "Settings",
    "as_dict",
    "load",
    "read",
]
