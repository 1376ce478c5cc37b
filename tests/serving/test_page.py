"""The page, in a real browser: what a person sees is what the API answers, and errors are put in words.

Good answers come from the server and are compared with a client of its API that is not the page; bad ones are put
into the browser's way, one request at a time.
"""

from __future__ import annotations

import base64
import itertools
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect, sync_playwright

PAGE = Path(__file__).parents[2] / "serving" / "page" / "index.html"
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; apt-get install chromium")

COLOURS = ["red", "green", "blue"]
SWITCHES = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)


@pytest.fixture(scope="module")
def page_url(server) -> str:
    """Where the page and its API are served, with a trailing slash."""
    return f"{server.url}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=SWITCHES)
        yield started
        started.close()


@pytest.fixture
def page(page_url: str, browser: Browser) -> Iterator[Page]:
    """The page, opened. Nothing may go wrong in it unseen, and nothing may be asked of another server."""
    context = browser.new_context(base_url=page_url, permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    requested: list[str] = []
    complaints: list[str] = []

    def complaint(message: ConsoleMessage) -> None:
        # An answer that a test has put in the way is reported by the browser as well.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            complaints.append(message.text)

    context.on("request", lambda request: requested.append(request.url))
    opened.on("console", complaint)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto("/")
    expect(opened.locator("#model option")).not_to_have_count(0)
    yield opened
    context.close()
    assert complaints == []
    assert [url for url in requested if not url.startswith((page_url, f"blob:{page_url}", "data:"))] == []


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return picture(tmp_path / "red.png", (250, 20, 10))


def picture(path: Path, colour: tuple[int, int, int]) -> Path:
    Image.new("RGB", (64, 48), colour).save(path)
    return path


def ask(url: str, path: Path, labels: list[str], **fields: str) -> list[tuple[str, str]]:
    """The API's answer to a client other than the page, as the page should show it."""
    data = {"labels": labels, **fields}
    response = httpx.post(f"{url}v1/classify", files={"image": (path.name, path.read_bytes())}, data=data)
    response.raise_for_status()
    return shown(response.json())


def shown(answer: dict) -> list[tuple[str, str]]:
    scores = answer["results"][0]["scores"]
    assert len(scores) > 1
    return [(item["label"], f"{item['score']:.1%}" if item["score"] >= 0.0005 else "< 0.1%") for item in scores]


def expect_rows(page: Page, rows: list[tuple[str, str]]) -> None:
    expect(page.locator("#scores")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#rows .name")).to_have_text([label for label, _ in rows])
    expect(page.locator("#rows .score")).to_have_text([score for _, score in rows])


def classified(page: Page, path: Path, labels: list[str] = COLOURS) -> list[tuple[str, str]]:
    """Choose a picture, wait for its bars, and return them."""
    page.get_by_label("Classes", exact=True).fill("\n".join(labels))
    page.locator("#file").set_input_files(path)
    rows = ask(page.url, path, labels)
    expect_rows(page, rows)
    return rows


def answer_once(page: Page, status: int, error: dict | None = None, headers: dict[str, str] | None = None) -> None:
    """Put an answer in the way of the next request; the one after reaches the server."""
    body = json.dumps({"error": {"status": status, **error}}) if error else "<h1>Bad gateway</h1>"

    def fulfil(route: Route) -> None:
        route.fulfill(status=status, body=body, headers={"Content-Type": "application/json", **(headers or {})})

    page.route("**/v1/classify", fulfil, times=1)


def problem(page: Page) -> Locator:
    return page.get_by_role("alert")


def test_the_page_is_served_with_a_strict_policy(page_url: str) -> None:
    """Else that nothing violates it would say nothing."""
    policy = httpx.get(page_url).headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy


def test_a_chosen_picture_is_scored(page: Page, red: Path) -> None:
    rows = classified(page, red)
    assert {label for label, _ in rows} == set(COLOURS)
    values = [float(score.rstrip("%").lstrip("< ")) for _, score in rows]
    assert values == sorted(values, reverse=True)
    widths = page.locator("#rows .bar i").evaluate_all("bars => bars.map(bar => parseFloat(bar.style.width))")
    assert widths == pytest.approx(values, abs=0.051)
    expect(page.get_by_role("status")).to_contain_text(f"Most likely: {rows[0][0]} {rows[0][1]}")
    expect(page.locator("#preview")).to_be_visible()
    assert page.locator("#preview").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64


@pytest.mark.parametrize("way", ["paste", "drop"])
@pytest.mark.parametrize("target", ["body", "#labels"])
def test_a_picture_may_be_pasted_or_dropped_anywhere(page: Page, red: Path, way: str, target: str) -> None:
    page.get_by_label("Classes", exact=True).fill("\n".join(COLOURS))
    page.locator(target).evaluate(
        """(element, [way, data]) => {
            const bytes = Uint8Array.from(atob(data), character => character.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], "red.png", {type: "image/png"}));
            const shared = {bubbles: true, cancelable: true};
            const event = way === "drop" ? new DragEvent("drop", {...shared, dataTransfer: carried})
                                         : new ClipboardEvent("paste", {...shared, clipboardData: carried});
            if (element.dispatchEvent(event)) throw new Error("the browser would open the file");
        }""",
        [way, base64.b64encode(red.read_bytes()).decode()],
    )
    expect_rows(page, ask(page.url, red, COLOURS))


def test_pasted_text_stays_text(page: Page) -> None:
    page.evaluate("navigator.clipboard.writeText('zebra')")
    page.get_by_label("Classes", exact=True).fill("")
    page.get_by_label("Classes", exact=True).press("Control+V")
    expect(page.get_by_label("Classes", exact=True)).to_have_value("zebra")


def test_edits_classify_again(page: Page, red: Path) -> None:
    classified(page, red)
    labels = ["blue", "<b>red</b> & 'x'", "red"]
    page.get_by_label("Classes", exact=True).fill("\n\n blue \n<b>red</b> & 'x'\nred\n")
    expect_rows(page, ask(page.url, red, labels))
    template = "a blurry picture of the {c}."
    page.get_by_label("Prompt template").fill(template)
    rows = ask(page.url, red, labels, template=template)
    assert rows != ask(page.url, red, labels), "the template changes nothing, so this test would see nothing"
    expect_rows(page, rows)
    expect(page.get_by_text("a blurry picture of the blue.")).to_be_visible()
    page.get_by_label("Prompt template").fill("")
    expect_rows(page, ask(page.url, red, labels))


def test_an_edit_drops_the_request_in_flight(page: Page, red: Path) -> None:
    """The slow answer to the first classes must not stand under the second, and the old one stays in sight."""
    rows = classified(page, red)
    page.route("**/v1/classify", lambda route: None, times=1)  # never answered
    with page.expect_request("**/v1/classify") as first:
        page.get_by_label("Classes", exact=True).fill("green\nred")
    expect(page.locator("#scores")).to_have_attribute("aria-busy", "true")
    expect(page.locator("#rows .name")).to_have_text([label for label, _ in rows])
    expect(page.locator("#scores")).to_have_css("opacity", "0.4")
    with page.expect_event("requestfailed", lambda request: request == first.value):
        page.get_by_label("Classes", exact=True).fill("blue\nred")
    expect_rows(page, ask(page.url, red, ["blue", "red"]))


def test_a_long_list_is_cut_until_asked_for(page: Page, red: Path) -> None:
    labels = [f"thing {number}" for number in range(24)] + ["red"]
    page.get_by_label("Classes", exact=True).fill("\n".join(labels))
    page.locator("#file").set_input_files(red)
    rows = ask(page.url, red, labels)
    expect_rows(page, rows[:10])
    page.get_by_role("button", name="Show all 25 classes").click()
    expect_rows(page, rows)


@pytest.mark.parametrize(
    ("status", "error", "words", "marked"),
    [
        (
            413,
            {"field": "image", "message": "21 MB; send at most 20 MB"},
            "Picture: 21 MB; send at most 20 MB",
            "#file",
        ),
        (422, {"field": "labels[2]", "message": "is twice"}, "Class 3, “blue”: is twice", "#labels"),
        (422, {"field": "labels", "message": "too many"}, "Classes: too many", "#labels"),
        (422, {"field": "template", "message": "has no {c}"}, "Template: has no {c}", "#template"),
        (500, {"field": "", "message": "It is written down."}, "It is written down.", None),
        (502, None, "The server answered 502.", None),
    ],
)
def test_a_refusal_is_put_in_words(
    page: Page, red: Path, status: int, error: dict | None, words: str, marked: str | None
) -> None:
    rows = classified(page, red)
    answer_once(page, status, error)
    page.get_by_label("Prompt template").fill("the {c}")
    expect(problem(page)).to_have_text(words)
    expect(page.locator("#rows .name")).to_have_text([label for label, _ in rows])
    expect(page.locator("#scores")).to_have_class("stale")
    expect(page.locator("#meta")).to_have_text("previous answer")
    expect(page.locator("[aria-invalid=true]")).to_have_count(1 if marked else 0)
    if marked:
        expect(page.locator(marked)).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Prompt template").fill("a {c}")
    expect_rows(page, ask(page.url, red, COLOURS, template="a {c}"))
    expect(problem(page)).to_be_empty()
    expect(page.locator("[aria-invalid]")).to_have_count(0)


def test_a_bad_picture_in_a_good_answer_is_an_error(page: Page, red: Path) -> None:
    error = {"status": 422, "field": "image", "message": "not a picture"}
    body = json.dumps({"model": "default", "results": [{"error": error}]})
    page.route("**/v1/classify", lambda route: route.fulfill(body=body, content_type="application/json"), times=1)
    page.locator("#file").set_input_files(red)
    expect(problem(page)).to_have_text("Picture: not a picture")


def test_a_busy_server_is_asked_once_more(page: Page, red: Path) -> None:
    classified(page, red)
    page.clock.install()
    busy = {"field": "", "message": "All replicas are at work."}
    answer_once(page, 503, busy, {"Retry-After": "7"})
    page.get_by_label("Prompt template").fill("the {c}")
    page.clock.run_for(500)
    expect(problem(page)).to_have_text("The server is busy. All replicas are at work. Trying again in 7 seconds.")
    expect(page.locator("#countdown")).to_have_text("Trying again in 7 seconds")
    page.clock.run_for(2_000)
    expect(page.locator("#countdown")).to_have_text("Trying again in 5 seconds")
    page.clock.run_for(6_000)
    expect_rows(page, ask(page.url, red, COLOURS, template="the {c}"))
    expect(problem(page)).to_be_empty()

    asked: list[int] = []

    def refuse(route: Route) -> None:
        asked.append(1)
        error = json.dumps({"error": {"status": 503, **busy}})
        route.fulfill(status=503, body=error, headers={"Retry-After": "7", "Content-Type": "application/json"})

    page.route("**/v1/classify", refuse)
    page.get_by_label("Prompt template").fill("that {c}")
    page.clock.run_for(500)
    expect(problem(page)).to_contain_text("Trying again in 7 seconds")
    page.clock.run_for(8_000)
    expect(problem(page)).to_have_text("The server is busy. All replicas are at work.")
    page.clock.run_for(60_000)
    assert len(asked) == 2
    page.unroute("**/v1/classify")
    page.get_by_role("button", name="Try again").click()
    expect_rows(page, ask(page.url, red, COLOURS, template="that {c}"))
    expect(page.get_by_role("heading", name="Scores")).to_be_focused()


def test_a_server_out_of_reach(page: Page, red: Path) -> None:
    rows = classified(page, red)
    page.context.set_offline(True)
    page.get_by_label("Prompt template").fill("the {c}")
    expect(problem(page)).to_have_text("The server cannot be reached. Try again.")
    expect(page.locator("#rows .name")).to_have_text([label for label, _ in rows])
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect_rows(page, ask(page.url, red, COLOURS, template="the {c}"))


def test_a_file_that_changed_is_not_the_networks_fault(page: Page, red: Path) -> None:
    classified(page, red)
    red.unlink()
    page.get_by_label("Prompt template").fill("the {c}")
    expect(problem(page)).to_have_text("Picture: This file cannot be read. Choose it again.")


@pytest.mark.parametrize("guarded", ["classify", "*"])
def test_a_key_is_asked_for_sent_and_not_kept(page: Page, red: Path, guarded: str) -> None:
    """Whether the server wants it at once or only for work."""
    seen: list[str | None] = []

    def guard(route: Route) -> None:
        seen.append(route.request.headers.get("authorization"))
        if seen[-1] == "Bearer open-sesame":
            return route.continue_()
        return route.fulfill(status=401, json={"error": {"status": 401, "field": "", "message": "Send a header."}})

    key = page.get_by_label("API key", exact=True)
    expect(key).to_be_hidden()
    page.route(f"**/v1/{guarded}", guard)
    page.reload()
    page.get_by_label("Classes", exact=True).fill("\n".join(COLOURS))
    if guarded == "classify":
        page.locator("#file").set_input_files(red)
    expect(problem(page)).to_have_text("The server asks for an API key. Write it under “API key” and press Enter.")
    key.fill("wrong")
    key.press("Enter")
    expect(problem(page)).to_have_text("The server does not accept this API key. Correct it and press Enter.")
    key.fill("sésame…")  # no header can carry it
    key.press("Enter")
    expect(problem(page)).to_contain_text("The server does not accept this API key.")
    key.fill("open-sesame")
    key.press("Enter")
    expect(problem(page)).to_be_empty()
    if guarded == "*":
        page.locator("#file").set_input_files(red)
    expect_rows(page, ask(page.url, red, COLOURS))
    assert seen[:3] == [None, "Bearer wrong", "Bearer open-sesame"]
    expect(page.locator("#curl")).to_contain_text('-H "Authorization: Bearer $API_KEY"')
    expect(page.locator("#curl")).not_to_contain_text("open-sesame")
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.reload()
    expect(key).to_have_value("")


def test_no_classes_and_no_file(page: Page, red: Path) -> None:
    rows = classified(page, red)
    page.get_by_label("Classes", exact=True).fill(" \n ")
    expect(problem(page)).to_have_text("Classes: Write at least one class, one a line.")
    expect(page.locator("#rows .name")).to_have_text([label for label, _ in rows])
    page.evaluate(
        """() => {
            const dataTransfer = new DataTransfer();
            dataTransfer.setData("text/uri-list", "https://example.com/cat.jpg");
            document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer}));
        }"""
    )
    expect(problem(page)).to_contain_text("Picture: That was a link, not a file.")


def test_the_curl_command_is_the_same_request(page: Page, tmp_path: Path) -> None:
    labels = ["it's red", "@red", "<green", "blue;type=text/plain", 'a "quoted" $HOME `x`', "red"]
    path = picture(tmp_path / "it's; a, red one.png", (250, 20, 10))
    classified(page, path, labels)
    page.get_by_label("Prompt template").fill("the {c}, isn't it")
    rows = ask(page.url, path, labels, template="the {c}, isn't it")
    expect_rows(page, rows)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")
    words = shlex.split(command)
    assert words[:2] == ["curl", f"{page.url}v1/classify"]
    sent = [word for option, word in itertools.pairwise(words) if option == "--form-string"]
    assert sent == [f"labels={label}" for label in labels] + ["template=the {c}, isn't it"]
    if shutil.which("curl"):
        ran = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert shown(json.loads(ran.stdout)) == rows


def test_a_model_is_chosen_where_there_are_several(page: Page, red: Path) -> None:
    classified(page, red)
    expect(page.get_by_label("Model")).to_be_hidden()
    listed = {"object": "list", "data": [{"id": "default", "image_size": 224}, {"id": "large", "image_size": 336}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    page.reload()
    page.locator("#file").set_input_files(red)
    answer_once(page, 422, {"field": "model", "message": "is not here"})
    with page.expect_request(lambda request: b'name="model"\r\n\r\nlarge\r\n' in (request.post_data_buffer or b"")):
        page.get_by_label("Model").select_option("large")
    expect(problem(page)).to_have_text("Model: is not here")
    expect(page.locator("#curl")).to_contain_text("--form-string 'model=large'")


def test_the_keyboard_is_enough(page: Page, red: Path) -> None:
    def focus_next(element: Locator) -> None:
        page.keyboard.press("Tab")
        expect(element).to_be_focused()
        # The picture's own input is out of sight; its label carries the ring.
        ring = page.locator("#drop") if element.get_attribute("id") == "file" else element
        expect(ring).to_have_css("outline-style", "solid")

    page.on("filechooser", lambda _: None)  # so that choosers are caught from here on, whenever one opens
    focus_next(page.locator("#file"))
    expect(page.locator("#file")).to_have_accessible_name("Choose a picture or drop it here, or paste it")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(red)
    expect(page.locator("#scores")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#file")).to_have_accessible_name("Choose another picture instead of red.png")
    focus_next(page.get_by_label("Classes", exact=True))
    page.keyboard.press("Control+A")
    page.keyboard.type("red\ngreen")
    expect_rows(page, ask(page.url, red, ["red", "green"]))
    focus_next(page.get_by_label("Prompt template"))
    focus_next(page.locator("summary"))
    page.keyboard.press("Enter")
    focus_next(page.get_by_label("API key", exact=True))
    focus_next(page.get_by_role("button", name="Copy"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Copied")
    focus_next(page.get_by_role("region", name="curl command"))


@pytest.mark.parametrize("width", [320, 768, 1440])
def test_nothing_is_wider_than_the_window(page: Page, tmp_path: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    path = picture(tmp_path / f"{'a-long-name' * 12}.png", (9, 9, 200))
    labels = ["blue", "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", "x" * 300]
    classified(page, path, labels)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    answer_once(page, 422, {"field": "labels[2]", "message": "y" * 300})
    page.get_by_label("Prompt template").fill("{c}" * 60)
    expect(problem(page)).to_contain_text("Class 3")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


CONTRAST = """() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const channels = colour => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = colour => channels(colour).slice(0, 3)
        .map(value => value / 255).map(value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4)
        .reduce((sum, value, place) => sum + value * [.2126, .7152, .0722][place], 0);
    const ground = element => {
        while (element && channels(getComputedStyle(element).backgroundColor)[3] === 0) element = element.parentElement;
        return getComputedStyle(element ?? document.body).backgroundColor;
    };
    const texts = [...document.querySelectorAll("body *")].filter(element => element.checkVisibility()
        && [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()));
    return texts.map(element => {
        const [low, high] = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => a - b);
        return [element.id || element.className || element.tagName, (high + .05) / (low + .05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(page: Page, red: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 or more."""
    page.emulate_media(color_scheme=scheme)
    grounds = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    assert grounds != page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    classified(page, red)
    answer_once(page, 422, {"field": "template", "message": "has no {c}"})
    page.get_by_label("Prompt template").fill("the")
    expect(problem(page)).to_contain_text("has no {c}")
    measured = page.evaluate(CONTRAST)
    assert len(measured) > 15
    assert [(name, ratio) for name, ratio in measured if ratio < 4.5] == []


def test_motion_is_reduced_where_asked(page: Page) -> None:
    bar = page.locator("#rows .bar i").first
    expect(bar).not_to_have_css("transition-duration", "0s")
    page.emulate_media(reduced_motion="reduce")
    expect(bar).to_have_css("transition-duration", "0s")
