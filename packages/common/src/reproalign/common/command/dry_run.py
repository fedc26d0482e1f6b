"""``--dry-run``: what a run would refuse before anything else, and what it would do; nothing is written."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.invocation import Invocation, Verb, carry_out, structured
from reproalign.common.launch.plan import Hardware, resolve
from reproalign.common.launch.start import start
from reproalign.common.models.named import check_named_models
from reproalign.common.records.folder import check_folder


def dry_run(invocation: Invocation, verb: Verb) -> int:
    """Check an invocation, say what it would do, and return the exit code.

    Raises:
        UserError: for a folder that holds something else, a model that is not there, or what the verb itself refuses.
    """
    folder = invocation.config.get("output_dir")
    if folder:
        check_folder(Path(folder), _as_recorded(invocation, verb))
    if not verb.previewed:  # which reads the tokenizer and the model's configuration
        check_named_models(structured(invocation.schema, invocation.config))
    if verb.dry_run:
        carry_out(replace(invocation, target=verb.dry_run))
        return 0
    if verb.launchable:
        return start(invocation, dry_run=True, check_options=verb.check, previewed=verb.previewed)
    where = f", and would write to {folder}" if folder else ""
    print(f"{invocation.command[0]} {verb.name}: the configuration is complete{where}")
    return 0


def _as_recorded(invocation: Invocation, verb: Verb) -> Invocation:
    """Return an invocation as its run records it: with the launch that ``auto`` stands for here."""
    if not verb.launchable:
        return invocation
    launch = resolve(LaunchConfig(**invocation.config["launch"]), Hardware.detect())
    return replace(invocation, config={**invocation.config, "launch": asdict(launch)})
