"""The same guests for asyncio: what waits in the rest of the interface is awaited here, and the loop goes on meanwhile.

    async with bivisor.aio.kvm_guest() as guest:
        print((await guest.run("uname -r")).text)

Each object has the methods of the one that it stands for (`sync`). What waits runs in a thread of its own, so any
number of guests go on at once; cancelling such a call leaves the thread to finish by itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from bivisor.toolstack.api import CompletedRun
from bivisor.toolstack.api import run as sync_run

if TYPE_CHECKING:
    from bivisor import Outcome
    from bivisor.abi.xen.xen import ShutdownReason
    from bivisor.cpu.contract import Engine
    from bivisor.cpu.registers import Regs
    from bivisor.toolstack.agent import Result
    from bivisor.toolstack.domu import DomU
    from bivisor.toolstack.guests import KvmGuest
    from bivisor.toolstack.inside import Inside
    from bivisor.toolstack.inspect import Breakpoint, Hit, Inspected, Where
    from bivisor.toolstack.xenhost import XenHost

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await `function(…)`, which waits, in a thread of its own: a pool's threads would be used up by guests that wait
    for each other."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    work = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the loop has ended meanwhile, and nobody waits
            pass

    threading.Thread(target=run, name="bivisor-aio", daemon=True).start()
    return await future


class _Inside:
    sync: Inside

    async def run(
        self, command: str, *, input: bytes | str = b"", timeout: float = 60.0, check: bool = False
    ) -> Result:
        """See `Inside.run`."""
        return await in_thread(self.sync.run, command, input=input, timeout=timeout, check=check)

    async def read_file(self, path: str) -> bytes:
        """See `Inside.read_file`."""
        return await in_thread(self.sync.read_file, path)

    async def write_file(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """See `Inside.write_file`."""
        await in_thread(self.sync.write_file, path, data, mode)

    async def put(self, source: str | Path, target: str) -> None:
        """See `Inside.put`."""
        await in_thread(self.sync.put, source, target)

    async def get(self, source: str, target: str | Path) -> None:
        """See `Inside.get`."""
        await in_thread(self.sync.get, source, target)

    async def load_module(self, module: str | Path, parameters: str = "") -> None:
        """See `Inside.load_module`."""
        await in_thread(self.sync.load_module, module, parameters)


class AsyncBreakpoint:
    """See `Breakpoint`, whose `wait` is awaited here."""

    def __init__(self, sync: Breakpoint) -> None:
        self.sync = sync

    async def wait(self, timeout: float = 60.0) -> Hit:
        """See `Breakpoint.wait`."""
        return await in_thread(self.sync.wait, timeout)

    async def resume(self) -> None:
        """See `Breakpoint.resume`."""
        await in_thread(self.sync.resume)

    async def remove(self) -> None:
        """See `Breakpoint.remove`."""
        await in_thread(self.sync.remove)

    async def __aenter__(self) -> AsyncBreakpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.remove()


class _Inspected:
    sync: Inspected

    async def read_memory(self, where: Where, length: int, *, physical: bool = False, vcpu: int = 0) -> bytes:
        """See `Inspector.read`."""
        return await in_thread(self.sync.read_memory, where, length, physical=physical, vcpu=vcpu)

    async def write_memory(self, where: Where, data: bytes, *, physical: bool = False, vcpu: int = 0) -> None:
        """See `Inspector.write`."""
        await in_thread(self.sync.write_memory, where, data, physical=physical, vcpu=vcpu)

    async def registers(self, vcpu: int = 0) -> Regs:
        """See `Inspector.registers`."""
        return await in_thread(self.sync.registers, vcpu)

    async def set_registers(self, vcpu: int = 0, **values: int) -> None:
        """See `Inspector.set_registers`."""
        await in_thread(self.sync.set_registers, vcpu, **values)

    async def breakpoint(self, where: Where, action: Callable[[Hit], object] | None = None) -> AsyncBreakpoint:
        """See `Inspector.breakpoint`."""
        return AsyncBreakpoint(await in_thread(self.sync.breakpoint, where, action))


class AsyncKvmGuest(_Inside, _Inspected):
    """See `KvmGuest`. `async with` boots it and gives everything back."""

    def __init__(self, sync: KvmGuest) -> None:
        self.sync: KvmGuest = sync

    def send(self, text: bytes | str) -> None:
        """See `Guest.send`."""
        self.sync.send(text)

    async def wait_for(self, words: bytes | str, timeout: float = 60.0) -> bytes:
        """See `Guest.wait_for`."""
        return await in_thread(self.sync.wait_for, words, timeout)

    async def wait(self, timeout: float | None = None) -> Outcome:
        """See `Guest.wait`."""
        return await in_thread(self.sync.wait, timeout)

    async def __aenter__(self) -> AsyncKvmGuest:
        await in_thread(self.sync.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self.sync.__exit__, None, None, None)


class AsyncDomU(_Inside, _Inspected):
    """See `DomU`. `async with` destroys it at the end."""

    def __init__(self, sync: DomU) -> None:
        self.sync: DomU = sync

    def send(self, text: bytes | str) -> None:
        """See `DomU.send`."""
        self.sync.send(text)

    async def wait_for(self, words: bytes | str, timeout: float = 60.0) -> bytes:
        """See `DomU.wait_for`."""
        return await in_thread(self.sync.wait_for, words, timeout)

    async def wait(self, timeout: float | None = None) -> ShutdownReason | None:
        """See `DomU.wait`."""
        return await in_thread(self.sync.wait, timeout)

    async def shutdown(self, order: str = "poweroff") -> None:
        """See `DomU.shutdown`."""
        await in_thread(self.sync.shutdown, order)

    async def destroy(self) -> None:
        """See `DomU.destroy`."""
        await in_thread(self.sync.destroy)

    async def __aenter__(self) -> AsyncDomU:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.destroy()


class AsyncXenHost:
    """See `XenHost`. `async with` makes it and closes it, and with it every domain."""

    def __init__(self, engine: Engine | str = "auto") -> None:
        self._engine = engine
        self.sync: XenHost

    async def create(self, name: str, kernel: str | Path | None = None, **options: Any) -> AsyncDomU:
        """See `XenHost.create`."""
        return AsyncDomU(await in_thread(self.sync.create, name, kernel, **options))

    async def __aenter__(self) -> AsyncXenHost:
        from bivisor.toolstack.xenhost import XenHost

        self.sync = await in_thread(XenHost, self._engine)
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self.sync.close)


def kvm_guest(**options: Any) -> AsyncKvmGuest:
    """See `bivisor.kvm_guest`; to be used with `async with`."""
    from bivisor.toolstack.guests import KvmGuest

    return AsyncKvmGuest(KvmGuest(**options))


def xen_host(engine: Engine | str = "auto") -> AsyncXenHost:
    """See `bivisor.xen_host`; to be used with `async with`."""
    return AsyncXenHost(engine)


async def run(command: str, **options: Any) -> CompletedRun:
    """See `bivisor.run`."""
    return await in_thread(sync_run, command, **options)
