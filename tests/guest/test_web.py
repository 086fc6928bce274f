"""`bivisor web` in a real browser, on whole guests: the picture, consoles, a form, and a link that breaks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from bivisor.image import Guest
from bivisor.toolstack.hostd.client import HostClient
from bivisor.toolstack.hostd.place import Place

from .browser import Tab, a_browser, a_web_server
from .storm import Storm
from .xl_person import Person

pytestmark = pytest.mark.guest

MIB = 1 << 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, guest: Guest) -> Iterator[Person]:
    """Somebody whose host has two domains with a disk and a network each."""
    folder = tmp_path_factory.mktemp("web")
    person = Person(folder / "host")
    person.run("host", "start", "--engine", "soft")
    for name in ("alice", "bob"):
        image = folder / f"{name}.img"
        with image.open("wb") as file:
            file.truncate(16 * MIB)
        person.xl("create", f"name={name}", f'disk=["{image},raw,xvda,rw"]', 'vif=["type=user"]')
    yield person
    person.run("host", "stop", "--force")


@pytest.fixture(scope="module")
def address(person: Person) -> Iterator[str]:
    with a_web_server(person.state) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    tab = Tab(browser, address, viewport={"width": 1366, "height": 900})
    expect(tab.page.locator("#link")).to_have_text("live")
    yield tab.page
    tab.close()


def told(person: Person) -> dict[str, Any]:
    """What the host itself says is there."""
    with HostClient(Place(person.state)) as host:
        found = host.call("picture")
    assert isinstance(found, dict)
    return found


def identities(picture: dict[str, Any]) -> set[str]:
    domains = {f"domain-{domain['domid']}" for domain in picture["domains"]}
    return domains.union(
        *({each["id"] for each in picture[kind]} for kind in ("channels", "grants", "rings", "watches"))
    )


def drawn(page: Page) -> set[str]:
    """The things that are on the picture: what they are is the beginning of their names."""
    names = page.evaluate("[...document.querySelectorAll('#xen [data-id]')].map((each) => each.dataset.id)")
    return {name for name in names if name.startswith(("domain-", "channel-", "grant-", "ring-", "watch-"))}


def connected(person: Person) -> bool:
    return all(ring["state"] in (4, None) for ring in told(person)["rings"]) and len(told(person)["rings"]) >= 8


def test_the_picture_has_everything_that_the_host_knows_and_nothing_that_it_does_not(
    person: Person, page: Page
) -> None:
    person.until(lambda: connected(person), "the devices do not connect")
    picture = told(person)
    assert len(picture["grants"]) >= 4
    assert len(picture["channels"]) >= 10
    person.until(lambda: drawn(page) == identities(told(person)), "the picture is another")
    for wire in page.locator(".wire .line").all():  # each is really drawn
        assert (wire.get_attribute("d") or "").startswith("M")
        assert wire.get_attribute("d") != "M0 0"


def test_a_domain_that_comes_by_the_form_is_drawn_paused_and_destroyed(person: Person, page: Page) -> None:
    page.get_by_role("button", name="New domain").click()
    page.get_by_label("Name").fill("a/b")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_role("alert")).to_contain_text("a/b")
    page.get_by_label("Name").fill("carol")
    page.get_by_label("Memory").fill("192")
    page.get_by_role("button", name="Create").click()
    box = page.get_by_role("article", name="carol")
    expect(box).to_contain_text("192 MiB")
    assert "carol" in person.names()

    page.get_by_role("button", name="Pause: carol").click()
    expect(box.locator(".state")).to_have_text("paused")
    assert person.domain("carol")["state"] == "--p---"
    page.get_by_role("button", name="Go on: carol").click()
    expect(box.locator(".state")).not_to_have_text("paused")

    expect(page.get_by_role("alert")).to_have_text([])  # nothing was refused

    person.xl("rename", "carol", "dora")
    box = page.get_by_role("article", name="dora")
    page.get_by_role("button", name="Destroy: dora").click()
    expect(page.get_by_role("dialog")).to_contain_text("Destroy dora?")
    page.get_by_role("button", name="Cancel").click()
    assert "dora" in person.names()
    page.get_by_role("button", name="Destroy: dora").click()
    page.get_by_role("button", name="Destroy", exact=True).click()
    expect(box).to_have_count(0)
    assert "dora" not in person.names()


def test_a_command_is_typed_on_a_console_and_its_output_read(page: Page) -> None:
    page.get_by_role("button", name="Console: alice").click()
    terminal = page.locator(".tty")
    expect(terminal).to_contain_text("~ #")
    page.keyboard.type("echo $((40 + 2))\n")
    expect(terminal.locator(".xterm-rows")).to_contain_text("42")
    page.get_by_role("button", name="Close the details").click()
    expect(terminal).to_have_count(0)


def test_everything_is_reached_and_opened_by_keys_alone(person: Person, page: Page) -> None:
    person.until(lambda: connected(person), "the devices do not connect")
    wire = page.get_by_role("button", name="Ring: disk xvda of domain 1")
    wire.focus()
    page.keyboard.press("Enter")
    panel = page.locator("#panel")
    expect(panel.get_by_role("heading", name="Disk xvda of alice")).to_be_visible()
    expect(panel).to_contain_text("4 Connected")
    expect(panel).to_contain_text("/local/domain/0/backend/vbd/1/51712")
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(wire).to_be_focused()

    page.get_by_role("button", name="XenStore", exact=True).press("Enter")
    panel.locator("summary", has_text="local").press("Enter")
    panel.locator("[data-path='/local/domain'] > summary").press("Enter")
    panel.locator("[data-path='/local/domain/1'] > summary").press("Enter")
    expect(panel.locator(".leaf", has_text="alice").first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1366, 768), (390, 844)], ids=["laptop", "phone"])
def test_an_automatic_check_of_accessibility_finds_nothing_serious(
    browser: Browser, address: str, size: tuple[int, int], scheme: str
) -> None:
    tab = Tab(browser, address, viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = tab.page
    try:
        expect(page.get_by_role("article", name="bob")).to_be_visible()
        for opens in (None, "XenStore", "New domain"):
            if opens:
                page.get_by_role("button", name=opens, exact=True).click()
            found = Axe().run(page).response["violations"]
            serious = [
                (each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")
            ]
            assert serious == [], opens
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= size[0], "it has to be scrolled sideways"
    finally:
        tab.close()


def test_a_lost_connection_comes_back_by_itself(person: Person, browser: Browser) -> None:
    token = "a-token-that-stays-the-same"
    with a_web_server(person.state, "--token", token) as address:
        tab = Tab(browser, address)
        page = tab.page
        expect(page.locator("#link")).to_have_text("live")
        port = address.rpartition(":")[2].partition("/")[0]
    expect(page.locator("#link")).to_contain_text("trying again")
    with a_web_server(person.state, "--token", token, "--port", port):
        expect(page.locator("#link")).to_have_text("live")
        expect(page.get_by_role("article", name="alice")).to_be_visible()
    tab.close()


@pytest.fixture(scope="module")
def kim(person: Person) -> Iterator[int]:
    """A machine of the hosted architecture that is called so: its process."""
    command = [sys.executable, "-m", "bivisor", "run", "--engine", "soft", "--quiet", "--name", "kim"]
    process = subprocess.Popen(command, env=person.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    yield process.pid
    process.terminate()
    process.wait(30)


def test_a_machine_is_drawn_as_its_process_and_its_threads_and_is_typed_to(kim: int, page: Page) -> None:
    box = page.get_by_role("article", name="kim")
    expect(box).to_contain_text(f"process {kim}")
    (thread,) = box.locator(".thread").all()
    number = thread.locator(".name").inner_text().split()[-1]
    assert number in [task.name for task in Path(f"/proc/{kim}/task").iterdir()]
    expect(thread.locator(".exits")).to_contain_text("PortIo")
    page.get_by_role("button", name="Console: kim").click()
    terminal = page.locator(".tty")
    expect(terminal).to_contain_text("~ #", timeout=30_000)
    page.keyboard.type("echo $((40 + 2))\n")
    expect(terminal.locator(".xterm-rows")).to_contain_text("42")


def test_one_command_starts_and_ends_all_that_there_is_to_see(browser: Browser, tmp_path: Path, guest: Guest) -> None:
    with a_web_server(tmp_path / "demo", "--demo") as address:
        tab = Tab(browser, address)
        for name in ("Domain-0", "alice", "bob", "kim"):
            expect(tab.page.get_by_role("article", name=name)).to_be_visible(timeout=30_000)
        tab.close()
    assert not list((tmp_path / "demo").rglob("*.sock"))


def test_ten_thousand_events_a_second_leave_the_page_small_and_answering(browser: Browser, tmp_path: Path) -> None:
    place = Place(tmp_path / "storm")
    host = Storm(place)
    try:
        with a_web_server(place.folder) as address:
            tab = Tab(browser, address)
            page = tab.page
            page.get_by_role("button", name="Event channel: port 1").press("Enter")
            sizes = []
            for _ in range(8):
                page.wait_for_timeout(1000)
                page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
                heap = int(page.evaluate("performance.memory.usedJSHeapSize"))
                sizes.append((heap, int(page.evaluate("document.querySelectorAll('*').length"))))
                page.get_by_role("button", name="Hold still").click()
                page.get_by_role("button", name="Go on").click()
            assert sizes[-1][0] < sizes[1][0] + 2 * MIB, sizes
            assert max(count for _, count in sizes) < 400, sizes
            tab.close()
    finally:
        host.close()


@pytest.fixture
def firmware(person: Person, tmp_path: Path) -> Iterator[Path]:
    """The log of the firmware of the PC `pc`, which has an empty disk and a boot menu."""
    image, log = tmp_path / "empty.img", tmp_path / "firmware.log"
    image.touch()
    os.truncate(image, 8 * MIB)
    words = ["run", "--engine", "soft", "--machine", "pc", "--disk", str(image), "--boot-menu", "--name", "pc"]
    command = [sys.executable, "-m", "bivisor", *words, "--verbose"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, env=person.environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr
        )
    yield log
    process.terminate()
    process.wait(30)


def test_keys_are_pressed_in_the_boot_menu_of_a_firmware_whose_screen_is_on_the_page(
    person: Person, firmware: Path, page: Page
) -> None:
    page.get_by_role("button", name="Screen: pc").click()
    expect(page.get_by_text("Keys go to the guest")).to_be_visible()
    page.locator(".canvas canvas").click()
    for words, key in (("Press ESC for boot menu", "Escape"), ("Select boot device", "1"), ("Booting from Hard", "")):
        person.until(lambda words=words: words in firmware.read_text(), words)  # type: ignore[misc]
        if key:
            page.keyboard.press(key)
    page.get_by_role("button", name="Stop: pc").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_role("article", name="pc")).to_have_count(0)


def test_the_requests_of_a_copy_are_shown_decoded_at_the_arrow_of_its_ring(person: Person, page: Page) -> None:
    person.until(lambda: connected(person), "the devices do not connect")
    page.get_by_role("button", name="Ring: disk xvda of domain 1").press("Enter")
    events, rate = page.locator(".events li"), page.locator(".rate")
    terminal = person.terminal("console", "alice")
    terminal.wait_for(b"~ # ")
    expect(rate).not_to_have_text("beginning to listen …")
    terminal.type(b"dd if=/dev/xvda of=/dev/null bs=16k count=200 iflag=direct\n")
    expect(events.filter(has_text="read").filter(has_text="16384 bytes").first).to_be_visible()
    expect(events.filter(has_text="ok").first).to_be_visible()
    expect(rate).to_contain_text("a second: ring.read.request")
    console = next(ring for ring in told(person)["rings"] if ring["id"] == "ring-console-1")
    page.get_by_role("button", name=f"to port {console['port']} of domain 1").press("Enter")
    expect(rate).not_to_have_text("beginning to listen …")
    terminal.type(b"echo $((40 + 2))\n")
    expect(events.first).to_contain_text(f"domain 1 port {console['port']}")
    terminal.type(b"\x1d")
    assert terminal.ended() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("device", "size"), [("laptop", (1366, 900)), ("phone", (390, 844))])
def test_pictures_of_the_main_states(
    person: Person,
    kim: int,
    browser: Browser,
    address: str,
    tmp_path: Path,
    device: str,
    size: tuple[int, int],
    scheme: str,
) -> None:
    """They are kept where BIVISOR_PICTURES says: docs/pictures has those that were looked at."""
    folder = Path(os.environ.get("BIVISOR_PICTURES", tmp_path))
    person.until(lambda: connected(person), "the devices do not connect")
    tab = Tab(browser, address, viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = tab.page

    def keep(state: str) -> None:
        picture = folder / f"web-{state}-{device}-{scheme}.png"
        page.screenshot(path=picture)
        with Image.open(picture) as taken:
            assert taken.width == size[0]
            taken.quantize(128).save(picture, optimize=True)

    expect(page.get_by_role("article", name="bob")).to_contain_text("256 MiB")
    expect(page.get_by_role("article", name="kim")).to_contain_text("PortIo")
    keep("overview")
    page.get_by_role("button", name="Ring: disk xvda of domain 1").press("Enter")
    expect(page.locator("#panel")).to_contain_text("Connected")
    with HostClient(Place(person.state)) as host:
        end, _ = host.console("alice")
        end.sendall(b"dd if=/dev/xvda of=/dev/null bs=16k count=200 iflag=direct\n")
        expect(page.locator(".events li").nth(30)).to_contain_text("read")
    keep("ring")
    page.get_by_role("button", name="Console: alice").press("Enter")
    expect(page.locator(".tty")).to_contain_text("~ #")
    keep("console")
    page.get_by_role("button", name="Close the details").click()
    page.get_by_role("button", name="New domain").click()
    expect(page.get_by_role("heading", name="New domain")).to_be_visible()
    keep("form")
    tab.close()
