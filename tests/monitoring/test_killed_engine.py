"""From an engine that is killed to somebody's pager, through the real programs, and the all-clear."""

from tests.monitoring.conftest import Stack
from tests.monitoring.test_alerts import GUIDE
from tests.monitoring.tools import ROOT, anchors
from tests.service.server import DEMO


def test_a_killed_engine_reaches_the_pager_and_so_does_the_all_clear(busy: Stack) -> None:
    busy.gateway.engine_process().kill()

    path, alert = busy.webhook.wait_for("EngineDead", "firing")
    page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    busy.gateway.wait_ready()
    cleared, _ = busy.webhook.wait_for("EngineDead", "resolved")

    assert (path, cleared) == ("/pager", "/pager")
    assert alert["labels"]["model"] == DEMO and alert["labels"]["profile"] == "demo"
    assert ROOT / page == GUIDE and anchor in set(anchors(GUIDE))
