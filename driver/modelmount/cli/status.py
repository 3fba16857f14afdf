"""`modelmount status`: how this node stands, on one screen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

import modelmount
from modelmount import config
from modelmount.cli import output, overview
from modelmount.cli.options import json_option, output_of, settings_options
from modelmount.cli.overview import Overview, Pull
from modelmount.pull import progress
from modelmount.pull.progress import human_seconds
from modelmount.system import lock


@click.command(
    short_help="Say how this node stands.",
    epilog="""\b
Examples:
  modelmount status
  kubectl exec -n modelmount-system ds/modelmount-node -c modelmount -- modelmount status
  modelmount status --json | jq '.volumes.unhealthy'

It asks no driver and no registry, and changes nothing. `modelmount doctor` says whether the machine is ready.
""",
)
@settings_options
@json_option
@click.pass_context
def status(context: click.Context, effective: config.Effective) -> None:
    """Say how this node stands: driver, room, pulls under way, volumes, and what is wrong with them."""
    say = output_of(context)
    settings = effective.settings
    found = overview.look(settings)
    if say.json:
        say.object(_plain(settings, found))
    else:
        width = max(len(word) for word, _ in _lines(settings, found))
        say.text(*(f"{word:<{width}}  {text}" for word, text in _lines(settings, found)))


def _lines(settings: config.Settings, found: Overview) -> Iterator[tuple[str, str]]:
    """What is on the screen: a word in front, empty where the line goes on with the same."""
    who = "no driver runs" if found.driver is None else f"the driver runs ({lock.named(found.driver)})"
    yield "node", f"{settings.node_name}, modelmount {modelmount.__version__}; {who}"
    free = f"{output.size(found.disk_free)} of {output.size(found.total)} are free"
    yield "store", f"{settings.root} on {found.file_system or 'an unknown file system'}, {free}"
    account = found.account
    used = f"{output.size(account.used)} used of {output.size(account.budget)}"
    room = f"{output.size(account.free)} free, {output.size(found.evictable)} evictable"
    yield "room", f"{used}, {output.size(account.reserved)} reserved by pulls; {room}"
    if found.held:
        yield "", f"held: {', '.join(f'{output.size(count)} {why}' for why, count in sorted(found.held.items()))}"
    bounds = found.bounds
    aim = f", a collection aims at {output.size(bounds.aim_free)}" if bounds.aim_free > bounds.keep_free else ""
    yield "bounds", f"{output.size(bounds.keep_free)} stay free{aim}: {bounds.reason}"
    if bounds.budget is not None:
        yield "", f"the cache may take {output.size(bounds.budget)}"
    if found.short_inodes:
        yield "", f"{found.short_inodes} files more than now must stay free to be made"
    yield "models", str(found.models)
    volumes = found.volumes
    yield "volumes", ", ".join(f"{count} {state}" for state, count in volumes.states.items()) or "none"
    for bad in volumes.unhealthy:
        yield "", f"{bad.volume_id} at {bad.target}: {bad.trouble}"
    for each in volumes.waiting:
        yield "waiting", f"pod {each.pod_uid} for volume {each.volume_id}"
    for pull in found.pulls:
        yield "pull", _pull(pull)
    yield "scrub", _scrub(found)
    for entry in found.quarantine:
        yield "quarantine", f"{entry.item}: {entry.reason}"
    for bar in found.bars:
        left = human_seconds(bar.next_try - time.time())
        yield "back-off", f"{bar.source} for {bar.hex[:12]}, {left} more: {bar.reason}"
    for aside in found.asides:
        left = human_seconds(aside.until - time.time())
        first = output.ago(aside.since)
        yield "mirror", f"{aside.mirror} isn't asked for {left}, first set aside {first}: {aside.reason}"
    for trouble in found.warnings:
        yield "warning", f"{trouble.message}; {trouble.remedy}"


def _pull(pull: Pull) -> str:
    done = f" {progress.of(pull.done, pull.total)}" if pull.total else ""
    for_whom = f" for namespace {pull.namespace}" if pull.namespace else ""
    by = f" by {lock.named(pull.holder)}" if pull.holder is not None else ""
    return f"{pull.phase} {pull.model}{done}{for_whom}{by}"


def _scrub(found: Overview) -> str:
    place = found.scrub
    if not place.began:
        return "no pass has begun yet"
    return f"a pass began {output.ago(place.began)}, {'and goes on' if place.after else 'and read everything'}"


def _plain(settings: config.Settings, found: Overview) -> dict[str, Any]:
    bounds, account = found.bounds, found.account
    return {
        "version": modelmount.__version__,
        "node": settings.node_name,
        "driver": {"running": found.driver is not None, "pid": _pid(found.driver)},
        "root": settings.root,
        "file_system": {"type": found.file_system or None, "bytes": found.total, "free": found.disk_free},
        "cache": {
            "budget": account.budget,
            "used": account.used,
            "reserved": account.reserved,
            "free": account.free,
            "evictable": found.evictable,
            "held": found.held,
            "models": found.models,
        },
        "bounds": {
            "max_bytes": bounds.budget,
            "keep_free": bounds.keep_free,
            "aim_free": bounds.aim_free,
            "keep_inodes": bounds.keep_inodes,
            "short_inodes": found.short_inodes,
            "reason": bounds.reason,
        },
        "pulls": [
            {
                "model": pull.model,
                "namespace": pull.namespace or None,
                "phase": pull.phase,
                "bytes_done": pull.done,
                "bytes_total": pull.total,
                "pid": _pid(pull.holder),
            }
            for pull in found.pulls
        ],
        "volumes": {
            "count": found.volumes.count,
            "states": found.volumes.states,
            "unhealthy": [
                {"volume": bad.volume_id, "pod_uid": bad.pod_uid or None, "target": bad.target, "message": bad.trouble}
                for bad in found.volumes.unhealthy
            ],
            "waiting": [
                {"volume": each.volume_id, "pod_uid": each.pod_uid, "target": each.target}
                for each in found.volumes.waiting
            ],
        },
        "scrub": {"began": round(found.scrub.began) or None, "after": found.scrub.after or None},
        "quarantine": [
            {"item": entry.item, "reason": entry.reason, "place": str(entry.place)} for entry in found.quarantine
        ],
        "back_off": [
            {"source": bar.source, "hex": bar.hex, "reason": bar.reason, "next_try": round(bar.next_try)}
            for bar in found.bars
        ],
        "mirrors_aside": [
            {
                "mirror": aside.mirror,
                "since": round(aside.since),
                "until": round(aside.until),
                "reason": aside.reason,
            }
            for aside in found.asides
        ],
        "warnings": [{"message": each.message, "remedy": each.remedy} for each in found.warnings],
    }


def _pid(holder: int | None) -> int | None:
    """None also for a process of another pid namespace."""
    return holder if holder is not None and holder > 0 else None
