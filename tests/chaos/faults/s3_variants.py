"""Variants of faults of the bucket."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import wait_for
from tests.chaos.engine.outcomes import Outcome
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import DeploymentVariant
from tests.chaos.faults.s3_steps import (
    S3_STEPS,
    fill_bucket,
    restore_bucket,
    wait_until_bucket_is_used,
    wait_until_published,
)
from tests.s3.store.proxy import Forward, Request, Respond

Rule = Callable[[Request], Forward | Respond]


def bucket_variant(
    name: str, inject: Callable[[Run], None], outcomes: Mapping[State, tuple[Outcome, ...]], **options: Any
) -> DeploymentVariant:
    """A variant whose cached images are in the bucket before, and to which everything is published afterwards."""
    variant = DeploymentVariant(
        name,
        steps=S3_STEPS,
        outcomes=outcomes,
        prepare=fill_bucket,
        inject=inject,
        end=restore_bucket,
        wait_until_recovered=wait_until_bucket_is_used,
        check_after=wait_until_published,
        has_bucket=True,
    )
    return attrs.evolve(variant, **options)


@attrs.frozen
class ProxyRule:
    """A rule of the proxy in front of the bucket, made for a run; `make` gets a list for the requests it applies to."""

    make: Callable[[Run, list[Request]], Rule]

    def inject(self, run: Run) -> None:
        """Apply the rule from now on."""
        applied: list[Request] = []
        run.data["applied"] = applied
        run.s3_proxy.rule = self.make(run, applied)

    def prepare(self, run: Run) -> None:
        """Apply the rule from the start on: a layer may be uploaded before the cases of all states are ready."""
        fill_bucket(run)
        self.inject(run)

    def verify(self, run: Run) -> None:
        """Wait until the rule has been applied: uploads take place after the responses to the clients."""
        wait_for(lambda: bool(run.data["applied"]), "the rule is applied")


def rule_variant(
    name: str, rule: ProxyRule, outcomes: Mapping[State, tuple[Outcome, ...]], **options: Any
) -> DeploymentVariant:
    """A variant of the bucket that a proxy rule makes."""
    return attrs.evolve(bucket_variant(name, rule.inject, outcomes, verify=rule.verify), **options)


def flip(at: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """Flip a bit of one byte, whose offset `at` gives for a size."""

    def change(body: bytes) -> bytes:
        offset = at(len(body))
        return body[:offset] + bytes([body[offset] ^ 1]) + body[offset + 1 :]

    return change
