"""Rules of the shim before the store, as faults of a scene: what they change, and that they were applied."""

from collections.abc import Callable

import attrs

from tests.chaos.bucket_scenes import TELL, fill_bucket, forward, is_published, is_used_again
from tests.chaos.cells import State
from tests.chaos.lanes import wait_for
from tests.chaos.outcomes import Outcome
from tests.chaos.scenes import Plot, Scene
from tests.s3.store.proxy import Forward, Request, Respond

STRUCK_WITHIN_S = 10.0
Rule = Callable[[Request], Forward | Respond]


@attrs.frozen
class StoreRule:
    """A rule of the shim, made for a scene, that must have been applied."""

    make: Callable[[Scene, list[Request]], Rule]

    def strike(self, scene: Scene) -> None:
        """From now on."""
        applied: list[Request] = []
        scene.props["applied"] = applied
        scene.store.rule = self.make(scene, applied)

    def prepare(self, scene: Scene) -> None:
        """From the start on: a layer in progress is being published when all are ready."""
        fill_bucket(scene)
        self.strike(scene)

    def prove(self, scene: Scene) -> None:
        """It was. What is published comes to it after the clients are served."""
        wait_for(lambda: bool(scene.props["applied"]), "it strikes", STRUCK_WITHIN_S)


def plot_of(name: str, rule: StoreRule, outcomes: dict[State, tuple[Outcome, ...]], **more: object) -> Plot:
    """A variant of a fault that a rule makes."""
    plot = Plot(
        name,
        tell=TELL,
        outcomes=outcomes,
        prepare=fill_bucket,
        strike=rule.strike,
        prove=rule.prove,
        mend=forward,
        recover=is_used_again,
        after=is_published,
        has_bucket=True,
    )
    return attrs.evolve(plot, **more)


def flip(at: Callable[[int], int]) -> Callable[[bytes], bytes]:
    """Flip a bit of the byte whose place `at` gives for a size."""

    def change(body: bytes) -> bytes:
        place = at(len(body))
        return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]

    return change
