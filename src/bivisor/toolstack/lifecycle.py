"""What becomes of a domain that has shut down: on_poweroff, on_reboot, on_crash and on_watchdog of its configuration.

It happens in a thread of its own, because ending a domain waits for its processors and building one takes time.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from dataclasses import replace
from queue import SimpleQueue

from bivisor.abi.xen.xen import ShutdownReason
from bivisor.errors import BivisorError
from bivisor.toolstack.domu import DomU
from bivisor.toolstack.xenhost import XenHost
from bivisor.toolstack.xlconfig import Action, DomainConfig

_log = logging.getLogger(__name__)
_FIELDS = {
    ShutdownReason.POWEROFF: "on_poweroff",
    ShutdownReason.REBOOT: "on_reboot",
    ShutdownReason.CRASH: "on_crash",
    ShutdownReason.WATCHDOG: "on_watchdog",
}


def action_for(config: DomainConfig, reason: ShutdownReason | None) -> Action:
    """What `config` says about a domain that ends so. One that suspends itself is kept; nobody resumes it yet."""
    field = _FIELDS.get(reason) if reason is not None else None
    if field is None:
        return Action.PRESERVE
    action = getattr(config, field)
    assert isinstance(action, Action)
    return action


class LifeCycle:
    """Follows the domains of `host` from now until `close()`."""

    def __init__(self, host: XenHost) -> None:
        self._host = host
        self._ends: SimpleQueue[tuple[DomU, ShutdownReason | None] | None] = SimpleQueue()
        self._restarts = True
        host.on_end = lambda domain, reason: self._ends.put((domain, reason))
        self._thread = threading.Thread(target=self._run, name="bivisor-lifecycle", daemon=True)
        self._thread.start()

    def no_more_restarts(self) -> None:
        """From now on a domain that would be started again is only destroyed."""
        self._restarts = False

    def close(self) -> None:
        """Finish what is going on and end."""
        self._restarts = False
        self._ends.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (end := self._ends.get()) is not None:
            try:
                self._act(*end)
            except BivisorError as error:
                _log.error("domain %s: %s", end[0].name, error)
            except Exception:
                _log.exception("domain %s", end[0].name)

    def _act(self, domain: DomU, reason: ShutdownReason | None) -> None:
        action = action_for(domain.config, reason)
        why = "ended" if reason is None else f"shut down ({reason.name.lower()})"
        _log.info("domain %s (%d) %s: %s", domain.name, domain.domid, why, action.value)
        if domain.error is not None:
            _log.error("domain %s stopped for an error of the host's", domain.name, exc_info=domain.error)
        again = domain.next_config or replace(domain.config, memory=domain.memory_target)
        match action:
            case Action.DESTROY:
                self._host.destroy(domain)
            case Action.RESTART:
                self._host.destroy(domain, comes_back=self._restarts)
                self._restart(domain, again)
            case Action.RENAME_RESTART:
                self._host.rename(
                    domain, f"{domain.name}-{time.strftime('%Y%m%dT%H%MZ', time.gmtime())}-{domain.domid}"
                )
                self._restart(domain, replace(again, uuid=str(uuid.uuid4())))
            case Action.PRESERVE:
                pass

    def _restart(self, domain: DomU, config: DomainConfig) -> None:
        if not self._restarts:
            return
        try:
            self._host.create_from(config, feed=domain.feed, records=False)
        except BaseException:
            with self._host.loop.lock:
                domain.feed.close()
            raise
