"""The schema: what an admin can set. Every knob is documented on its field and bounded by its type."""

from __future__ import annotations

import fnmatch
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from modelmount.config import spelling

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Percent = Annotated[int, msgspec.Meta(ge=1, le=99)]
LongSeconds = Annotated[float, msgspec.Meta(ge=0, le=315360000)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


class Registry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an admin says about one registry host; the table key is `host` or `host:port` as it stands in references,
    in lower case.
    """

    plain_http: bool = False
    """Talk http instead of https. Only here, never in a volume's attributes."""
    ca_file: str | None = None
    """PEM file with the CA certificates to trust for this host, instead of the system's."""
    ca_files: list[str] = []
    """Several of them in its place; all count."""
    client_certificate: str | None = None
    """PEM file with the certificate to show to this host, its chain, and its key unless `client_key` has that."""
    client_key: str | None = None
    """PEM file with the key of `client_certificate`, not encrypted."""
    client_certificates: list[Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)]] = []
    """Several of them in its place, as pairs of files, `[["a.crt", "a.key"], ["b.pem"]]`: the first one is shown of
    which the host names an issuer.
    """
    proxy: str = ""
    """URL of the proxy to reach this host through, and whatever it sends us to; `direct` for none. Empty: `proxy` of
    the top level counts.
    """
    proxy_login_file: str | None = None
    """File with `name:password` in one line, for this host's own `proxy`."""
    trusted_realms: list[str] = []
    """Hosts (`host` or `host:port`) besides the registry's own that may act as its token server."""
    connections: Annotated[int, msgspec.Meta(ge=1, le=256)] = 16
    """Connections for blobs of this host at the same time: as a registry, also those to its mirrors; as a mirror, for
    whichever registries. 1 for one that limits requests.
    """
    server: str = ""
    """URL of the registry's API where it isn't `https://<host>/v2`."""
    sharing: Literal["repository", "proof"] = "repository"
    """What of other repositories is taken over when one of this registry names it. `repository`: nothing, it is
    downloaded once more, and kept once. `proof`: large blobs, after 64 random ranges were compared with what this
    registry sends; its operator can see by that what is on this node.
    """
    audit: bool = False
    """Prove access by fetching the manifest instead of asking for its headers: some registries log only that."""
    service_account_audience: str = ""
    """Audience of the service account tokens that this registry's token server exchanges (RFC 8693). Empty: it is shown
    none.
    """

    @property
    def cas(self) -> tuple[str, ...]:
        """The files with CA certificates; none for the system's."""
        return (self.ca_file,) if self.ca_file is not None else tuple(self.ca_files)

    @property
    def clients(self) -> tuple[tuple[str, str | None], ...]:
        """The certificates to show, and their keys where those lie apart, in order."""
        if self.client_certificate is not None:
            return ((self.client_certificate, self.client_key),)
        return tuple((files[0], files[1] if len(files) > 1 else None) for files in self.client_certificates)


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may read what is cached already."""

    verification: Literal["always", "record", "never"] = "always"
    """`always`: each first publish proves its own access with one manifest request. `record`: not where the registry
    agreed to the same credential within `record_seconds`. `never`: whatever is cached here is readable by every pod.
    """
    record_seconds: LongSeconds = 3600.0
    """How long a proof counts with `record`; 0 means for as long as the model is here."""
    on_registry_down: Literal["deny", "allow_recorded", "allow_any"] = "allow_recorded"
    """What new pods may read of what is here while the registry can't be asked. `deny`: nothing but what needs no word
    of the registry's (`record_seconds`, `preloaded`). `allow_recorded`: what the same credential proved within
    `grace_seconds`. `allow_any`: everything, also who never proved anything; whoever can bring trouble about between
    this node and a registry opens what is here of it.
    """
    grace_seconds: LongSeconds = 86400.0
    """How long a proof counts while the registry is down, also with `always`; 0: none does then."""
    anonymous: bool = True
    """Whether what a registry gave without a credential is for every pod as long as that proof counts. If not, a pod
    that brings a credential is judged by that alone.
    """
    preloaded: list[str] = []
    """Repositories (`harbor.example.com/llm/llama3`) and prefixes (`harbor.example.com/llm/*`, or `*` for all) of which
    pods may read, without a proof, what an admin put here with `modelmount pull` or `import`.
    """
    node_credential: Literal["deny_if_pod_has_secret", "share", "off"] = "deny_if_pod_has_secret"
    """Whom the node's own credentials (`docker_config`, `provider_config`) open doors for: pods that bring no Secret,
    also those whose Secret has nothing for the registry (`share`), or no pod, and the command line alone (`off`).
    """
    docker_config: str | None = None
    """Path of a docker `config.json` whose credentials are used when the pod brings none."""
    provider_config: str | None = None
    """Path of the kubelet's CredentialProviderConfig (`--image-credential-provider-config`), whose plugins are asked
    where nothing else has a credential. Needs `program_dir`.
    """
    program_dir: str | None = None
    """Directory with those plugins (`--image-credential-provider-bin-dir`), and with the `docker-credential-*` helpers
    that `docker_config` names. No program outside of it is started.
    """
    program_seconds: Annotated[float, msgspec.Meta(gt=0, le=60)] = 20.0
    """How long one of these programs may take."""


class Pull(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How blobs are fetched."""

    connections: Annotated[int, msgspec.Meta(ge=1, le=256)] = 32
    """Connections for blobs at the same time on this node. A pull uses few unless they turn out to be slow."""
    bytes_per_second: Bytes = 0
    """Most bytes of blobs a second that this process receives, all pulls together; 0 means no limit."""
    connect_timeout_seconds: Seconds = 10.0
    """How long one connection may take to be made."""
    read_timeout_seconds: Seconds = 30.0
    """How long a connection may stay silent."""
    document_timeout_seconds: Seconds = 30.0
    """Total time for one small document: manifest, token."""
    mirror_timeout_seconds: Seconds = 10.0
    """How long a mirror may take until a blob's first byte, and how long it may stay silent; then the next is asked."""
    idle_seconds: Seconds = 300.0
    """A job that no call has asked for stops after this time and keeps its bytes. The kubelet comes back after at most
    122 s.
    """


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Upper bounds on what an artifact may be."""

    model_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 60)] = 4 << 40
    """Declared size of one model, and the bytes its archives may unpack to."""
    archive_entries: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 100_000
    """Entries in one archive."""
    expansion: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 200
    """How many times its own size a compressed archive may unpack to, beyond 64 MiB; 0 means as often as it likes."""
    free_bytes: Bytes = 1 << 30
    """Free space on the store's file system that a pull must leave."""


class Cache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the store may take of its disk, and what goes when that is short. A change of this table in the file counts
    without a restart.
    """

    max_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 60)] | None = None
    """Most that models may take. Not set: no bound but `share` and the watermarks."""
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    """Most that models may take, as a part of the file system's size. With `max_bytes` too, the smaller counts."""
    high_watermark: Percent | None = None
    """How full, in percent, the file system may be: pulls stop there, and models go when others fill it further. Not
    set: 5 below the kubelet's thresholds where the kubelet or its images share the file system, else no bound. Where
    they share it, never nearer than that.
    """
    low_watermark: Percent | None = None
    """How full the file system is to be after others filled it beyond the high watermark. Not set: 5 below that."""
    free_inodes: Annotated[int, msgspec.Meta(ge=0, le=1 << 60)] = 1000
    """Files that must stay free to be made on the file system."""
    kubelet_config: str = ""
    """The kubelet's configuration, for its thresholds. Empty: `<kubelet_root>/config.yaml`, and where it isn't there,
    the kubelet's defaults.
    """
    image_roots: tuple[str, ...] = ("/var/lib/containerd", "/var/lib/containers/storage", "/var/lib/docker")
    """Where the container runtime may keep images; those that exist are asked which file system they are on."""
    namespace_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 60)] | None = None
    """Most that the models of one namespace may take. Not set: no quota."""
    namespaces: dict[str, Annotated[int, msgspec.Meta(ge=1, le=1 << 60)]] = {}
    """The same for single namespaces by name, in place of `namespace_bytes`."""
    working_set_seconds: LongSeconds = 604800.0
    """How long after its last use a model counts as its namespace's working set: before that goes, what others have
    above their share does.
    """
    grace_seconds: LongSeconds = 300.0
    """How long a model stays after its last use, whatever the need for space."""
    partial_seconds: LongSeconds = 604800.0
    """How long an interrupted download stays that nobody goes on with."""
    vanished_seconds: LongSeconds = 600.0
    """How long a pod's directory, or the kubelet's record of a mount there, must have been gone before what was
    published there counts as ended, though the kubelet never unpublished it.
    """
    scrub_bytes_per_second: Bytes = 8 << 20
    """How fast the driver verifies what it has, in the background, once a week; 0 switches that off."""
    pins: list[str] = []
    """References that are kept once they are here, besides those of `modelmount pin`."""


class Publish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a call waits and what a mount looks like."""

    wait_fraction: Annotated[float, msgspec.Meta(ge=0.1, le=0.99)] = 0.92
    """Share of a call's remaining time to wait in it before answering that the pull goes on."""
    wait_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 105.0
    """Longest wait inside one call, also where the caller set no deadline."""
    waiters: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    """Publishes that may wait at the same time, three quarters of them of one namespace; the next one is told to come
    again.
    """
    mount_flags: tuple[Literal["nosuid", "nodev", "noexec"], ...] = ("nosuid", "nodev", "noexec")
    """Flags on top of `ro`. runc before 1.2 cannot start containers with user namespaces over any of them: then set
    `[]`.
    """


class Kubernetes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the driver asks of the API server. Without a service account's token, or a right, it does without, and says
    so once.
    """

    events: bool = True
    """Tell pods in their events that their model is pulled, is here, or was refused."""
    startup_taint: str = ""
    """Key of the taint with which new nodes keep pods away; the driver removes it once it serves and is registered.
    Empty means none.
    """
    capacity: bool = False
    """Tell the scheduler how large a model this node can still take: GetCapacity, and this node as a topology of its
    own, for a csi-provisioner with --node-deployment beside the driver. Needs mode `all`.
    """
    pull_secrets: bool = False
    """Use the `imagePullSecrets` of the pod's service account where nothing else has a credential. The driver must be
    let read them.
    """
    account_dir: str = "/var/run/secrets/kubernetes.io/serviceaccount"
    """Where the token of the pod's service account is, and the API server's CA."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an admin can set. Times are seconds, sizes bytes, paths absolute."""

    root: str = "/var/lib/modelmount"
    """The store. One file system, mode 0700; readable with ls and cat."""
    mode: Literal["all", "node", "controller"] = "all"
    """Which CSI services to serve beside Identity."""
    endpoint: str = "unix:///var/lib/kubelet/plugins/csi.modelmount.io/csi.sock"
    """The CSI socket. `CSI_ENDPOINT` overrides it, as the CSI specification demands."""
    driver_name: str = "csi.modelmount.io"
    """The name in CSIDriver, StorageClass and pods."""
    node_id: str = ""
    """The Kubernetes node name; empty means this host's name."""
    kubelet_root: str = "/var/lib/kubelet"
    """The kubelet's root directory."""
    target_roots: list[str] = []
    """Directories below which volumes may be published; empty means `<kubelet_root>/pods`."""
    registration_dir: str = ""
    """Where the kubelet looks for plugins; empty means `<kubelet_root>/plugins_registry`, `none` switches built-in
    registration off.
    """
    registration_endpoint: str = ""
    """The path of the CSI socket as the *kubelet* sees it, when that differs from ours."""
    metrics_address: str = ""
    """`host:port` for /metrics and /healthz (`:port` for every address); empty means off."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""
    allowed_registries: list[str] = []
    """Globs of registries that volumes may name, compared with `host` or `host:port` as it stands in the reference;
    empty means every host that is not an address, `localhost` or link-local.
    """
    policy_file: str = ""
    """File with the rules of what pods may mount; read again whenever it changes. Empty means no rules."""
    audit_file: str = ""
    """File with who mounted what and who was refused, a JSON object a line. Empty means none is kept."""
    audit_bytes: Annotated[int, msgspec.Meta(ge=4096, le=1 << 40)] = 64 << 20
    """Size at which the audit file is rotated; five older ones are kept."""
    proxy: str = ""
    """URL of the http proxy through which registries are reached (CONNECT), such as `http://proxy.example.com:3128`.
    Empty means none; those of the environment never count.
    """
    proxy_login_file: str | None = None
    """File with `name:password` in one line, for the proxy of the top level; read for each connection."""
    hosts_dir: str = ""
    """Directory with containerd's `<host>/hosts.toml` files, often `/etc/containerd/certs.d`: the mirrors of
    registries. Empty means none.
    """
    registries: dict[str, Registry] = {}
    """Per-host settings. Naming a host here also allows it where it is an address or `localhost`."""
    auth: Auth = Auth()
    pull: Pull = Pull()
    limits: Limits = Limits()
    publish: Publish = Publish()
    cache: Cache = Cache()
    kubernetes: Kubernetes = Kubernetes()

    def registry(self, host: str) -> Registry:
        """The settings of `host`, the defaults where it isn't listed. With https port 443 may be named or not: nobody
        gets round them by another spelling.
        """
        found = self.registries.get(host)
        if found is None:
            found = self.registries.get(host.removesuffix(":443") if host.endswith(":443") else f"{host}:443")
            found = None if found is not None and found.plain_http else found
        return found or _UNLISTED

    def permits(self, host: str) -> bool:
        """Whether the admin's allow-list lets volumes name `host`."""
        return not self.allowed_registries or any(
            fnmatch.fnmatchcase(spelling.usual(host), spelling.glob(pattern)) for pattern in self.allowed_registries
        )

    @property
    def wants_api(self) -> str:
        """What a node's driver wants of the API server, in words; empty where it wants nothing."""
        wanted = {
            "events on pods": self.kubernetes.events,
            "the removal of the startup taint": bool(self.kubernetes.startup_taint),
            "imagePullSecrets of service accounts": self.kubernetes.pull_secrets,
        }
        return ", ".join(word for word, is_wanted in wanted.items() if is_wanted)

    @property
    def node_name(self) -> str:
        """This node, as Kubernetes calls it."""
        return self.node_id or socket.gethostname()

    @property
    def socket_path(self) -> Path:
        """The CSI socket as a path."""
        return Path(self.endpoint.removeprefix("unix://"))

    @property
    def publish_roots(self) -> tuple[Path, ...]:
        """Directories below which targets must lie."""
        return tuple(Path(p) for p in self.target_roots) or (Path(self.kubelet_root) / "pods",)

    @property
    def plugins_registry(self) -> Path | None:
        """Where to put the registration socket; None when built-in registration is off."""
        if self.registration_dir == "none":
            return None
        return Path(self.registration_dir or f"{self.kubelet_root}/plugins_registry")

    @property
    def metrics_host_port(self) -> tuple[str, int] | None:
        """`metrics_address` taken apart, an IPv6 host without its brackets; None when it is off."""
        if not self.metrics_address:
            return None
        host, _, port = self.metrics_address.rpartition(":")
        return host.strip("[]"), int(port)


_UNLISTED = Registry()


def as_dict(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, as they would stand in a file. There are no secrets in them."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    return plain
