"""What an admin lets pods mount: one strict file of rules, and decisions over facts that others found.

Rule of this room: it decides and reads nothing but its own file. A refusal names its rule. Exactly one rule decides
about a model in a namespace: of those whose patterns match, the one with the longest pattern for the model, of equals
one that names namespaces, then the first in the file; else `default`.
"""

from modelmount.policy.kinds import HEAD_BYTES, Kind, by_content, by_name
from modelmount.policy.rules import Policy, Rule, read

__all__ = ["HEAD_BYTES", "Kind", "Policy", "Rule", "by_content", "by_name", "read"]
