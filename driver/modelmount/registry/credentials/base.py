"""What is shown to a registry."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credential:
    """Nothing (anonymous), a name and password, or a token. Equal ones open the same doors, so it is a key of caches.

    `identity_token` and `account_token` (of a pod's service account) are exchanged for access tokens at the registry's
    token server; `registry_token` goes to the registry itself. Where there is one, name and password don't count. No
    secret shows in its repr or text.
    """

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    account_token: str = field(default="", repr=False)

    @classmethod
    def anonymous(cls) -> Credential:
        """Who has none."""
        return cls()

    @property
    def is_anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return self == _ANONYMOUS

    @property
    def has_password(self) -> bool:
        """Whether it is a name and password."""
        tokens = self.identity_token or self.registry_token or self.account_token
        return bool(self.username or self.password) and not tokens

    @property
    def secrets(self) -> tuple[str, ...]:
        """All of it, for hashing with a key; never to be shown."""
        return self.username, self.password, self.identity_token, self.registry_token, self.account_token

    def __repr__(self) -> str:
        """Its kind alone."""
        kind = "anonymous" if self.is_anonymous else "password" if self.has_password else "token"
        return f"<Credential: {kind}>"


_ANONYMOUS = Credential()
