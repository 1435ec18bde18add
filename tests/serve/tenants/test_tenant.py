"""What one tenant is known to be: when it wants a turn, and what a failure of its own does."""

from pathlib import Path

import pytest

from streamkd import config as configuration
from streamkd.serve.processes import messages
from streamkd.serve.tenants import tenant as tenants
from streamkd.serve.tenants.folder import TenantFile
from streamkd.serve.tenants.tenant import Tenant

TREE = {"stream": {"source": {"name": "http"}, "records": {"inputs": [{"name": "x", "shape": [2]}]}}}


@pytest.fixture
def tenant(tmp_path: Path) -> Tenant:
    """One that was taken in: ten records of which four are learned, by a checkpoint."""
    made = Tenant("a", TenantFile(tmp_path / "a.yaml", ()), tmp_path / "a", configuration.from_tree(TREE))
    made.tell(messages.Committed({"main/0": 4}))
    made.tell(messages.Beat("taking records", ends={"main/0": 10}))
    made.taken_in = True
    return made


def test_records_that_wait_want_a_turn(tenant: Tenant) -> None:
    """While there are some, and no longer when they are learned."""
    assert (tenant.lag, tenant.wants()) == (6, True)
    tenant.tell(messages.Committed({"main/0": 10}))
    assert not tenant.wants()


def test_what_was_learned_since_the_checkpoint_waits_again_when_the_learner_dies(tenant: Tenant) -> None:
    """It had learned all, and a checkpoint holds four: six wait, for a moment that grows with each death."""
    for delay in (1.0, 2.0, 4.0):
        tenant.turn_begun(0.0)
        tenant.tell(messages.Beat("learning", offsets={"main/0": 10}))
        assert tenant.lag == 0
        before = tenant._not_before
        tenant.turn_over("its learner died")
        assert tenant.lag == 6
        assert not tenant.wants()
        assert tenant._not_before - before > delay / 2
    assert tenant.summary("waiting")["failures"] == 3


def test_a_turn_that_learned_is_followed_by_another_at_once(tenant: Tenant) -> None:
    """A slice that ended with a checkpoint forgets the deaths before."""
    tenant.turn_begun(0.0)
    tenant.turn_over("its learner died")
    tenant.turn_begun(0.0)
    tenant.tell(messages.Committed({"main/0": 7}))
    tenant.turn_over()
    assert tenant.wants()


def test_a_turn_in_which_nothing_was_committed_is_not_repeated_at_once(tenant: Tenant) -> None:
    """A tenant that cannot go on does not take turns from the others."""
    tenant.turn_begun(0.0)
    tenant.turn_over()
    assert tenant.lag == 6
    assert not tenant.wants()


def test_a_failure_is_said_until_a_turn_goes_well(tenant: Tenant) -> None:
    """The reason stands in the list; the turn after it that learned takes it away."""
    tenant.turn_begun(0.0)
    tenant.turn_over("a database is damaged")
    assert tenant.summary("waiting") | {"state": "failed", "reason": "a database is damaged"} == tenant.summary(
        "waiting"
    )
    tenant.turn_begun(0.0)
    tenant.tell(messages.Committed({"main/0": 7}))
    tenant.turn_over()
    assert tenant.summary("waiting")["state"] == "waiting"


def test_a_log_that_cannot_be_opened_is_asked_for_again_later(tenant: Tenant) -> None:
    """The ingress has let it out: it says why, wants no turn, and is let in again when it can be."""
    assert tenant.may_ask_in()
    tenant.let_out("the log's file is damaged")
    assert not tenant.may_ask_in()
    assert not tenant.wants()
    assert tenant.reason == "the log's file is damaged"
    tenant.let_in()
    assert (tenant.reason, tenant.wants()) == ("", True)


def test_the_wait_between_failures_has_an_end(tenant: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a learner dies under it, it is tried again within five minutes."""
    monkeypatch.setattr(tenants.time, "monotonic", lambda: 0.0)
    for _ in range(20):
        tenant.turn_begun(0.0)
        tenant.turn_over("its learner died")
    assert tenant._not_before == tenants.LAST_SECONDS
