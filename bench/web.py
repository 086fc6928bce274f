"""What the page costs: a guest whose ring somebody looks at, and a browser that gets ten thousand events a second.

    python bench/web.py               both, the browser for one minute
    python bench/web.py --minutes 10

The first copies from a disk by turns with nobody looking, and with the arrow of its ring open, and prints the ratio of
the two. The second prints, each ten seconds, the page's heap after a collection and how long a click takes until it
is drawn. Needs Chromium and the development packages.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from playwright.sync_api import Browser, Page, sync_playwright

from bivisor.toolstack.hostd.methods import Methods
from bivisor.toolstack.hostd.place import Place
from bivisor.toolstack.hostd.server import RpcServer
from bivisor.toolstack.xenhost import XenHost
from guest.storm import Storm

MIB = 1 << 20
PAIRS = 20
PASSES = 4


@contextmanager
def browser() -> Iterator[Browser]:
    program = which("chromium") or which("google-chrome")
    if program is None:
        sys.exit("bench/web.py needs Chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@contextmanager
def page_of(place: Place, opened: Browser) -> Iterator[Page]:
    """The page of the host in `place`, by `bivisor web` in a process of its own."""
    command = [sys.executable, "-m", "bivisor", "web", "--port", "0", "--state", str(place.folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert server.stdout is not None
        page = opened.new_page(viewport={"width": 1366, "height": 900})
        page.goto(server.stdout.readline().split()[-1])
        page.wait_for_selector(".domu")
        yield page
        page.close()
    finally:
        server.terminate()
        server.wait()


# -------------------------------------------------------------------- a guest whose ring somebody looks at


def copies(opened: Browser, folder: Path) -> None:
    """Copies, by turns with and without somebody who looks, who comes first by turns too."""
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    place = Place(folder / "host")
    place.folder.mkdir(mode=0o700)
    with XenHost("soft") as host:
        server = RpcServer(place.socket, Methods(host, place, lambda: None).table())
        domain = host.create("demo", disks=[f"{image},raw,xvda,rw"])
        domain.wait_for("# ")
        with page_of(place, opened) as page:
            pairs = []
            for number in range(PAIRS):
                if number % 2:
                    seen = looked_at(page, domain)
                    pairs.append((copy(domain), seen))
                else:
                    pairs.append((copy(domain), looked_at(page, domain)))
        server.close()
    ratios = [seen / unseen for unseen, seen in pairs]
    unseen = statistics.median(pair[0] for pair in pairs)
    print(f"a copy of {PASSES * 64} MiB    {unseen:.3f} s with nobody looking (median of {PAIRS})")
    print(f"with its ring open   {statistics.median(ratios):.3f} times that (median of {PAIRS} pairs)")


def copy(domain: Any) -> float:
    """Seconds for a copy in the guest, by its own clock."""
    passes = " ".join(str(number) for number in range(PASSES))
    domain.send(
        f"cat /proc/uptime; for i in {passes}; do dd if=/dev/xvda of=/dev/null bs=64k iflag=direct 2>/dev/null; done; "
        "cat /proc/uptime; echo e''nd\n"
    )
    said = domain.wait_for("end\r\n").decode().split("\r\n")
    times = [float(line.split()[0]) for line in said if line[:1].isdigit()]
    return times[1] - times[0]


def looked_at(page: Page, domain: Any) -> float:
    page.get_by_role("button", name="Ring: disk xvda").press("Enter")
    time.sleep(0.5)
    seconds = copy(domain)
    page.get_by_role("button", name="Close the details").click()
    time.sleep(0.5)
    return seconds


# -------------------------------------------------------------------- ten thousand events a second


def storm(opened: Browser, folder: Path, minutes: float) -> None:
    place = Place(folder / "storm")
    host = Storm(place)
    try:
        with page_of(place, opened) as page:
            page.get_by_role("button", name="Event channel: port 1").press("Enter")
            page.wait_for_selector(".events li")
            session = page.context.new_cdp_session(page)
            print(f"{'second':>6} {'events/s':>9} {'heap, KiB':>10} {'elements':>9} {'a click, ms':>12}")
            began = time.monotonic()
            while time.monotonic() - began < minutes * 60:
                time.sleep(10)
                session.send("HeapProfiler.collectGarbage")
                heap = page.evaluate("performance.memory.usedJSHeapSize") >> 10
                elements = page.evaluate("document.querySelectorAll('*').length")
                rate = page.locator(".rate").inner_text().split()[0]
                start = time.perf_counter()
                page.get_by_role("button", name="Hold still").click()
                page.wait_for_selector("text=Go on")
                click = (time.perf_counter() - start) * 1e3
                page.get_by_role("button", name="Go on").click()
                print(f"{time.monotonic() - began:6.0f} {rate:>9} {heap:10,} {elements:9} {click:12.0f}", flush=True)
    finally:
        host.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long the browser gets events")
    parser.add_argument("--only", choices=("copies", "storm"))
    options = parser.parse_args()
    with browser() as opened, tempfile.TemporaryDirectory() as name:
        if options.only != "storm":
            copies(opened, Path(name))
        if options.only != "copies":
            storm(opened, Path(name), options.minutes)


if __name__ == "__main__":
    main()
