"""Publish, unpublish, stats: what a volume shows is decided once, then answered from the disk.

A publish is, in order: a live publication is OK before anything else is asked; what the attributes mean; what is in the
way; then proof of access, the tree if it is here, else the wait for its pull; lease and mount. Only the last step holds
the target's lock. A lease that stands decides instead of the tag: its digest is mounted again without any network, and
pulled by that digest when its tree is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from modelmount import telemetry
from modelmount.config import Settings
from modelmount.content.store import Store
from modelmount.errors import (
    Cancelled,
    Forbidden,
    IntegrityError,
    InvalidRequest,
    ModelMountError,
    NotFound,
    Pending,
    Unauthenticated,
    Unavailable,
)
from modelmount.formats import ANY
from modelmount.oci.descriptor import Descriptor
from modelmount.pull import progress
from modelmount.pull.job import Job
from modelmount.pull.proofs import Proof
from modelmount.pull.resolver import Model
from modelmount.registry.credentials import Credential
from modelmount.system import mount
from modelmount.system.target import TargetRoots
from modelmount.volumes import aliases, standing, stats
from modelmount.volumes.attempts import Attempt, Attempts, Call
from modelmount.volumes.audit import Audit
from modelmount.volumes.leases import Lease, Leases, Owner
from modelmount.volumes.news import News, Tell
from modelmount.volumes.policing import Check, FindsSignatures, Policing
from modelmount.volumes.ports import Audits, FindsCredentials, Pulls, Request, Resolves
from modelmount.volumes.publications import Publications, Wanted
from modelmount.volumes.stats import Stats
from modelmount.volumes.volume import (
    VolumeSpec,
    account_tokens,
    pod,
    pod_identity,
    pod_namespace,
    pod_uid,
    service_account,
    significant,
)

log = logging.getLogger(__name__)

How = Literal["live", "remounted", "cached", "pulled"]
"""How a publish ended well: it was there; made again from its lease; new, without and with a pull."""

REFUSALS = (Forbidden, Unauthenticated, NotFound)
"""By somebody's decision, as a pod is told."""
_PULL_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Published:
    """How a publish ended well, and by which proof, account and signatures the model may be read; by its lease where
    nobody was asked.
    """

    how: How
    lease: Lease
    proof: Proof | Literal["lease"] = "lease"
    account: str = ""
    signers: Sequence[str] = ()


class Publisher:
    """Makes and ends publications. Safe to call from many threads; raises ModelMountError.

    `publish` returns once the model is mounted, and waits no longer for a pull than its call allows; the pull goes on
    without it. `unpublish` and `stats` never wait for a pull, and nothing here waits for one while it holds a lock.
    """

    def __init__(
        self,
        store: Store,
        resolver: Resolves,
        puller: Pulls,
        credentials: FindsCredentials,
        settings: Settings,
        *,
        owner: Owner = "csi",
        audit: Audits | None = None,
        signatures: FindsSignatures | None = None,
        tell: Tell | None = None,
    ) -> None:
        """For pods, targets lie below the configured roots; for `owner="cli"` anywhere, and `volumes.local` says where
        not.
        """
        self._store, self._resolver, self._puller, self._credentials = store, resolver, puller, credentials
        self._settings, self._owner = settings, owner
        self._leases = Leases(store)
        self._attempts = Attempts()
        self._audit: Audits = audit or Audit("", 0)
        self._news = News(tell)
        self._policing = Policing(store, settings.policy_file if owner == "csi" else "", signatures)
        self._anywhere = TargetRoots([Path("/")])
        self._targets = TargetRoots(settings.publish_roots) if owner == "csi" else self._anywhere
        self._publications = Publications(store, self._targets, self._attempts, owner=owner)
        self._elsewhere = Publications(store, self._anywhere, self._attempts, owner=owner)

    def publish(self, request: Request, call: Call) -> None:
        """Return once the model is mounted at the target; Pending while its pull goes on, or when the volume was
        unpublished meanwhile.
        """
        try:
            path = self._targets.locate(request.target_path).path
            with self._attempts.begin(path, call, self._settings.publish) as attempt:
                published = self._publish(request, path, attempt)
        except ModelMountError as e:
            telemetry.publishes_total.labels(e.reason).inc()
            if isinstance(e, (*REFUSALS, IntegrityError)) or (isinstance(e, Unavailable) and e.answered):
                # also what is no trouble and no manifest, but a page to log in: it ends a record of access as well
                self._record("refused", request, model=aliases.model(request.attributes), reason=e.message)
            if isinstance(e, REFUSALS):
                self._news.refused(pod(request.attributes), e)
            raise
        how, lease = published.how, published.lease
        telemetry.publishes_total.labels(how).inc()
        fields = {"how": how, "volume": lease.volume_id, "target": path, "model": lease.manifest, "tree": lease.tree}
        log.info("published", extra={"fields": fields})
        if how in {"cached", "pulled"}:
            self._news.mounted(pod(request.attributes), lease)
        if how != "live":
            more = {"digest": lease.manifest, "proof": published.proof, "registry_account": published.account}
            self._record("mounted", request, model=lease.reference, how=how, signers=published.signers, **more)

    def unpublish(self, volume_id: str, target_path: str) -> None:
        """End the publication; done already is success, and so is a target that was never ours, which is left alone.

        Raises InvalidRequest for text that is no absolute path, Precondition where files or a foreign mount are in the
        way.
        """
        found = self._find(target_path)
        if found is None:
            log.warning("unpublish of volume %s names %r, which is no target; nothing is done", volume_id, target_path)
            return
        path, publications = found
        if publications is self._elsewhere:
            lease = self._leases.read(volume_id, path)
            if lease is None or lease.owner != self._owner:
                log.warning("volume %s is not published at %s; what is there is left alone", volume_id, path)
                return
        publications.end(volume_id, path)
        self._audit.record("unmounted", volume=volume_id, target=path)

    def _record(self, event: str, request: Request, **fields: object) -> None:
        """Into the audit log, with whose it is."""
        who = pod_identity(request.attributes)
        self._audit.record(event, **who, volume=request.volume_id, target=request.target_path, **fields)

    def stats(self, volume_id: str, volume_path: str) -> Stats:
        """Use and health of the volume at this path, in constant time. Raises NotFound where it isn't published."""
        unknown = NotFound(f"volume {volume_id!r} is not published at {volume_path!r}")
        try:
            found = self._find(volume_path)
        except InvalidRequest as e:
            raise unknown from e
        lease = self._leases.read(volume_id, found[0]) if found else None
        if found is None or lease is None or lease.owner != self._owner:
            raise unknown
        return stats.of_lease(lease, self._store.root, self._trouble(lease, *found))

    # -- publish

    def _publish(self, request: Request, path: str, attempt: Attempt) -> Published:
        attributes = significant(request.attributes)
        now = self._publications.look(request.volume_id, path)
        if now.live and now.lease is not None and (now.lease.adopted or now.lease.attributes == attributes):
            return Published("live", now.lease)
        spec = VolumeSpec.parse(attributes)
        flags = frozenset(self._settings.publish.mount_flags) | (frozenset(request.mount_flags) & mount.FLAGS.keys())
        uid, who = pod_uid(request.attributes), pod(request.attributes)
        wanted = Wanted(request.volume_id, path, attributes, spec, uid, flags, who, pod_namespace(request.attributes))
        if not now.is_empty:
            now = self._publications.check(wanted, attempt)
            if now.live and now.lease is not None:
                return Published("live", now.lease)
        check = self._policing.begin(spec.reference, request.attributes)
        if now.binding is not None and self._may_remount(check, now.binding, spec):
            lease = self._publications.make(wanted, None, attempt)
            if lease is not None:
                return Published("remounted", lease, signers=check.signers)
        return self._decide(wanted, now.binding, request, check, attempt)

    def _may_remount(self, check: Check, lease: Lease, spec: VolumeSpec) -> bool:
        """Whether the policy, which may have changed since, lets a lease that stands be mounted again as it is. Raises
        Forbidden where it doesn't; of an adopted lease, which knows no model, the model has to be resolved first.
        """
        if check.rule is None:
            return True
        if lease.adopted or not self._store.has_blob(lease.model.manifest, lease.model.repository.scope):
            return False
        check.model(lease.model, self._store, spec.selection)
        if not check.signed_before(spec.reference, lease.model.manifest):
            return False
        return check.may_show(lease.model, self._store, spec.selection)

    def _decide(
        self, wanted: Wanted, lease: Lease | None, request: Request, check: Check, attempt: Attempt
    ) -> Published:
        """Prove access, then mount what is here or pull it. A lease pins the digest: by that, never by tag."""
        wanted.spec.check_allowed(self._settings)
        reference, policy, choice = wanted.spec.reference, wanted.spec.pull_policy, wanted.spec.choice
        if lease is not None and not lease.adopted:
            reference, choice = replace(reference, tag=None, digest=lease.model.manifest), ANY
        tokens = account_tokens(request.attributes, request.secrets)
        credential = self._credentials.find(
            reference.repository, request.secrets, tokens, service_account(request.attributes), of_pod=True
        )
        model = self._resolver.resolve(reference, policy, credential, choice)
        check.model(model, self._store, wanted.spec.selection)
        check.signed(wanted.spec.reference, model, credential)
        made = self._make(wanted, model, check, attempt)
        if made is not None:
            return Published("cached", made, model.proof, credential.username, check.signers)
        if policy != "Never":
            self._look_ahead(wanted, model, credential, check, attempt)
        made = self._pull_and_make(wanted, model, credential, check, attempt)
        how: How = "cached" if policy == "Never" else "pulled"
        return Published(how, made, model.proof, credential.username, check.signers)

    def _look_ahead(self, wanted: Wanted, model: Model, credential: Credential, check: Check, attempt: Attempt) -> None:
        def head(descriptor: Descriptor, count: int) -> bytes | None:
            attempt.check()
            return self._puller.head(model, credential, descriptor, count)

        check.heads(model, wanted.spec.selection, head)

    def _make(self, wanted: Wanted, model: Model, check: Check, attempt: Attempt) -> Lease | None:
        """Mount what is here and passes the policy; None when it isn't here."""
        if not check.may_show(model, self._store, wanted.spec.selection):
            return None
        return self._publications.make(wanted, model, attempt)

    def _pull_and_make(
        self, wanted: Wanted, model: Model, credential: Credential, check: Check, attempt: Attempt
    ) -> Lease:
        self._publications.require_parent(wanted.path)
        for _ in range(_PULL_ROUNDS):
            fetch = wanted.spec.pull_policy != "Never"
            job = self._puller.ensure(model, wanted.spec.selection, credential, fetch=fetch, namespace=wanted.namespace)
            if fetch:
                self._news.pulling(wanted.pod, wanted.path, str(wanted.spec.reference), job)
            self._await(job, wanted, attempt)
            made = self._make(wanted, model, check, attempt)
            # With a lease the job need not hold the tree. Without one its tree went, by quarantine: the next round
            # needs a job that looks again.
            self._puller.release(job)
            if made is not None:
                return made
        raise Unavailable(f"the files of {model} vanish while they are being mounted; look at the driver's log")

    def _await(self, job: Job, wanted: Wanted, attempt: Attempt) -> None:
        with telemetry.publishes_waiting.track_inprogress():
            try:
                ready = attempt.wait(job)
            except Cancelled as e:
                attempt.check()
                raise Pending(
                    f"the pull of {wanted.spec.reference} was stopped; the next try goes on from there"
                ) from e
        if not ready:
            raise Pending(progress.sentence(str(wanted.spec.reference), job.snapshot()))

    # -- where

    def _find(self, target_path: str) -> tuple[str, Publications] | None:
        """The one spelling of a path and who is in charge of it; None for `/`. Raises InvalidRequest for text that is
        no absolute path.
        """
        try:
            return self._targets.locate(target_path).path, self._publications
        except InvalidRequest:
            if target_path and not target_path.strip("/"):
                return None
        return self._anywhere.locate(target_path).path, self._elsewhere

    def _trouble(self, lease: Lease, path: str, publications: Publications) -> str:
        """What is wrong with a publication; empty when nothing is."""
        try:
            now = publications.look(lease.volume_id, path)
        except ModelMountError as e:
            return e.message
        return standing.trouble(now, self._leases.tree_root(lease))
