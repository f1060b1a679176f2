"""The page in a browser, over a real server."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("transformers")

from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from retrieval import IndexWriter, SparseEncoder
from serving.configuration import Limits, ServerConfiguration
from serving.keys import Key
from tests.moe.generation.conftest import save_tiny_decoder
from tests.serving.socket_server import serve

KEY = "page-0123456789abcdef"
MARKUP = '<img src=x onerror="alert(1)"> & <b>lexical</b>'
PATIENCE_MS = 20_000

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

DOCUMENTS = [
    {
        "_id": "d1",
        "title": "Vaccines",
        "text": "Vaccination trains the immune system. " * 12 + "Vaccines work.",
    },
    {"_id": "d2", "title": MARKUP, "text": f"A document of {MARKUP} that does no work."},
    {"_id": "d3", "title": "", "text": "The universe is expanding; universities are not."},
    *({"_id": f"w{place}", "title": f"Work {place}", "text": "work " * place} for place in range(1, 13)),
]


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> ServerConfiguration:
    folder: Path = tmp_path_factory.mktemp("page")
    with IndexWriter.create(folder / "index", encoder=SparseEncoder.load("bm25")) as writer:
        writer.add(DOCUMENTS)
    (folder / "decoder").mkdir()
    save_tiny_decoder(folder / "decoder")
    return ServerConfiguration(
        indexes={"docs": folder / "index"},
        models={"tiny": folder / "decoder"},
        port=0,
        threads=2,
        limits=Limits(max_body_bytes=100_000),
    )


@pytest.fixture(scope="module")
def server(configuration: ServerConfiguration) -> Iterator[httpx.Client]:
    with serve(configuration) as client:
        client.timeout = httpx.Timeout(60)
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).exists() else next(filter(None, map(shutil.which, BROWSERS)), None)
        if found is None:
            pytest.skip("needs a Chromium: playwright install chromium, or one on the path")
        # Chromium refuses to run as root with its sandbox.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=found, args=arguments)
        yield started
        started.close()


def opened(browser: Browser, server: httpx.Client, **options: Any) -> Iterator[Page]:
    """A page; afterwards nothing has gone wrong in it and nobody else was asked for anything."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    faults: list[str] = []
    urls: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("request", lambda request: urls.append(request.url))

    def note(message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            faults.append(message.text)

    page.on("console", note)
    page.goto(str(server.base_url))
    yield page
    context.close()
    assert faults == []
    assert urls
    assert all(url.startswith(str(server.base_url)) for url in urls)


@pytest.fixture
def page(browser: Browser, server: httpx.Client) -> Iterator[Page]:
    yield from opened(browser, server)


@pytest.fixture
def phone(browser: Browser, server: httpx.Client) -> Iterator[Page]:
    size = {"width": 360, "height": 740}
    yield from opened(browser, server, viewport=size, is_mobile=True, has_touch=True)


def searched(server: httpx.Client, query: str, k: int = 10) -> list[dict[str, Any]]:
    body = {"query": query, "k": k, "with": ["text", "explain"]}
    hits: list[dict[str, Any]] = server.post("/v1/indexes/docs/search", json=body).json()["results"][0][
        "hits"
    ]
    return hits


def go_to(page: Page, view: str) -> None:
    page.get_by_role("link", name=view, exact=True).click()


def query_of(page: Page) -> Locator:
    return page.get_by_role("searchbox", name="Query")


def generate(page: Page, prompt: str, tokens: int = 12) -> None:
    """Greedily, to the end."""
    go_to(page, "Generate")
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Tokens at most").fill(str(tokens))
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Generate").click()
    expect(page.locator("#generate-status")).to_have_text(re.compile(r"ended|broken off|^$"))


def test_search_shows_hits_with_terms_marked_and_shares_as_bars(page: Page, server: httpx.Client) -> None:
    expect(query_of(page)).to_be_focused()
    page.keyboard.type("how do vaccines work")
    hits = searched(server, "how do vaccines work")
    expect(page.locator(".hit")).to_have_count(len(hits))
    expect(page.get_by_role("status").first).to_contain_text("10 results")
    for row, hit in zip(page.locator(".hit").all(), hits, strict=True):
        assert row.locator("h3").inner_text() == (hit["document"]["title"] or hit["id"])
        told = [[*each.locator("th, .number").all_inner_texts()] for each in row.locator("tr").all()]
        assert told == [[term["token"], f"{term['share']:.3f}"] for term in hit["explanation"]]
        widths = [each.bounding_box() for each in row.locator(".bar").all()]
        lengths = [box["width"] for box in widths if box is not None]
        assert len(lengths) == len(hit["explanation"])
        assert lengths == sorted(lengths, reverse=True)
    first = page.locator(".hit", has=page.get_by_role("heading", name="Vaccines"))
    assert {text.lower() for text in first.locator("mark").all_inner_texts()} == {
        "vaccines",
        "vaccination",
        "work",
    }


def test_words_are_marked_by_their_analysis_and_not_by_their_letters(page: Page) -> None:
    query_of(page).fill("university")
    expect(page.locator(".hit mark")).to_have_text(["universe", "universities"])
    query_of(page).fill("expand")
    expect(page.locator(".hit mark")).to_have_text(["expanding"])


def test_more_results_and_what_the_vocabulary_lacks(page: Page, server: httpx.Client) -> None:
    query_of(page).fill("work qwertz")
    expect(page.locator(".hit")).to_have_count(10)
    expect(page.locator("#search-status")).to_contain_text("not in the vocabulary: qwertz")
    page.get_by_role("button", name="More results").click()
    expect(page.locator(".hit")).to_have_count(len(searched(server, "work", 20)))
    query_of(page).fill(" ")
    expect(page.locator(".hit")).to_have_count(0)


def test_typing_asks_once_it_rests(page: Page) -> None:
    page.clock.install(time=datetime(2030, 1, 1))
    page.clock.pause_at(datetime(2030, 1, 2))
    asked: list[Any] = []
    page.on(
        "request", lambda request: asked.append(request.post_data_json) if "search" in request.url else None
    )
    for text in ("v", "va", "vaccines"):
        query_of(page).fill(text)
        page.clock.run_for(50)
    assert asked == []
    page.clock.run_for(500)
    expect(page.locator(".hit")).to_have_count(1)
    assert [body["query"] for body in asked] == ["vaccines"]


def test_a_later_query_cancels_the_one_before(page: Page) -> None:
    held: list[Route] = []
    cancelled: list[str] = []

    def hold_first(route: Route) -> None:
        if route.request.post_data_json["query"] == "work":
            held.append(route)
        else:
            route.continue_()

    page.on("requestfailed", lambda request: cancelled.append(request.post_data_json["query"]))
    page.route("**/search", hold_first)
    with page.expect_request("**/search"):
        query_of(page).fill("work")
    query_of(page).fill("vaccines")
    expect(page.locator(".hit")).to_have_count(1)
    assert cancelled == ["work"]
    assert len(held) == 1


def test_text_of_documents_is_text(page: Page) -> None:
    query_of(page).fill("lexical")
    expect(page.locator(".hit h3")).to_have_text(MARKUP)
    assert page.locator(".hit img, .hit b").count() == 0
    page.get_by_role("button", name="Compare the query with").click()
    expect(page.locator(".both tbody th")).to_have_text("lexic")


def test_a_query_and_a_hit_side_by_side(page: Page, server: httpx.Client) -> None:
    query_of(page).fill("vaccines work well")
    page.get_by_role("button", name="Compare the query with Vaccines").click()
    expect(page.locator("#main")).to_be_focused()
    (hit,) = (hit for hit in searched(server, "vaccines work well") if hit["id"] == "d1")
    rows = page.locator(".both tbody tr")
    expect(rows).to_have_count(len(hit["explanation"]))
    for row, term in zip(rows.all(), hit["explanation"], strict=True):
        assert row.locator("th").inner_text() == term["token"]
        numbers = [float(text) for text in row.locator(".number").all_inner_texts()]
        assert numbers == pytest.approx([term["query"], term["document"], term["share"]], abs=1e-3)
    assert float(page.locator(".both tfoot .number").inner_text()) == pytest.approx(hit["score"], abs=1e-3)
    expect(page.locator(".only").first).to_contain_text("train")
    page.get_by_label("Document", exact=True).fill("nothing of it")
    expect(page.locator("#terms")).to_contain_text("They share no term, so the score is 0.")
    page.go_back()
    expect(page.locator(".hit").first).to_be_visible()


def test_statistics_of_the_index(page: Page, server: httpx.Client) -> None:
    go_to(page, "Statistics")
    stats = server.get("/v1/indexes/docs/stats").json()
    shown = page.locator("#statistics > div")
    expect(shown.first).to_have_text(re.compile(rf"Documents\s*{stats['documents']}"))
    names = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert names["Postings"] == f"{stats['postings']:,}"
    assert names["Encoder"] == "bm25"
    assert names["Fingerprint"] == stats["fingerprint"]


def test_generated_tokens_are_coloured_by_expert_and_counted(page: Page, server: httpx.Client) -> None:
    generate(page, "the quick")
    body = {
        "model": "tiny",
        "prompt": "the quick",
        "max_tokens": 12,
        "temperature": 0,
        "return_routing": True,
    }
    choice = server.post("/v1/completions", json=body).json()["choices"][0]
    experts = choice["routing"]["experts"]
    assert page.locator("#output").text_content() == "the quick" + choice["text"]
    tokens = page.locator(".token")
    expect(tokens).to_have_count(len(experts))
    counts = [[0] * 4 for _ in experts[0]]
    for of in experts:
        for layer, chosen in enumerate(of):
            for expert in chosen:
                counts[layer][expert] += 1
    expect(page.locator(".heat")).to_have_text([str(count) for of in counts for count in of])
    heads = {head.inner_text(): colour(head) for head in page.locator("th.expert").all()}
    assert len(set(heads.values())) == 4
    for layer in (1, 0):
        page.get_by_label("Colour by the experts of").select_option(str(layer))
        assert [colour(token) for token in tokens.all()] == [heads[str(of[layer][0])] for of in experts]


def colour(element: Any) -> str:
    found: str = element.evaluate("element => getComputedStyle(element).backgroundColor")
    return found


def test_tokens_and_cells_are_reached_by_keyboard(page: Page) -> None:
    generate(page, "the quick", 5)
    page.locator(".token").first.focus()
    expect(page.locator("#token-detail")).to_contain_text(
        re.compile(r'Token 1 ".*", layer 1: experts \d, \d')
    )
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token").nth(1)).to_be_focused()
    expect(page.locator("#token-detail")).to_contain_text("Token 2")
    page.locator(".heat").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("#cell-detail")).to_contain_text("layer 1, expert 0:")


def test_counts_of_the_last_minute_are_those_of_the_server(page: Page) -> None:
    generate(page, "the quick", 3)
    answers: list[Any] = []

    def answer_once(route: Route) -> None:  # a second later they may be others
        answers.append(answers[0] if answers else route.fetch())
        route.fulfill(response=answers[0])

    page.route("**/routing?window_s=60", answer_once)
    page.get_by_role("combobox", name="Count").select_option("minute")
    expect(page.locator(".heat").first).not_to_have_text(page.locator(".heat").first.inner_text())
    layers = answers[0].json()["layers"]
    expect(page.locator(".heat")).to_have_text([str(load) for layer in layers for load in layer["load"]])
    assert min(sum(layer["load"]) for layer in layers) >= 2 * (9 + 2)  # the prompt's are among them


def test_a_generation_is_stopped(page: Page) -> None:
    held: list[Route] = []
    cancelled: list[str] = []
    page.on("requestfailed", lambda request: cancelled.append(request.url))
    page.route("**/v1/completions", lambda route: held.append(route))
    go_to(page, "Generate")
    page.get_by_label("Prompt").fill("the quick")
    with page.expect_request("**/v1/completions"):
        page.get_by_label("Prompt").press("Control+Enter")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#generate-status")).to_contain_text("stopped")
    assert len(cancelled) == 1


def test_errors_are_the_sentences_of_the_api(page: Page, server: httpx.Client) -> None:
    long = "long " * 30_000
    query_of(page).fill(long)
    refused = server.post("/v1/indexes/docs/search", json={"query": long}).json()["error"]["message"]
    expect(page.locator("#search-error")).to_have_text(refused)
    assert page.locator("#search-error").get_attribute("role") == "alert"
    query_of(page).fill("vaccines")
    expect(page.locator(".hit")).to_have_count(1)
    expect(page.locator("#search-error")).to_have_text("")

    prompt = "a" * 60
    generate(page, prompt)
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 12}
    expect(page.locator("#generate-error")).to_have_text(
        server.post("/v1/completions", json=body).json()["error"]["message"]
    )

    go_to(page, "Statistics")
    page.context.set_offline(True)
    page.get_by_role("button", name="Read again").click()
    expect(page.locator("#statistics-error")).to_contain_text("the server does not answer")


def test_a_stream_that_breaks_off_says_so(page: Page) -> None:
    piece = '{"choices": [{"text": "so", "finish_reason": null, "routing": {"tokens": ["so"], "experts": [null]}}]}'
    page.route("**/v1/completions", lambda route: route.fulfill(body=f"data: {piece}\n\ndata: {{"))
    generate(page, "the quick")
    expect(page.locator("#output")).to_have_text("the quickso")
    expect(page.locator("#generate-error")).to_have_text("the answer broke off; try again")


def test_a_key_is_asked_for_and_kept_in_memory_only(
    browser: Browser, configuration: ServerConfiguration
) -> None:
    keys = (Key.model_validate({"name": "reader", "key": KEY, "scope": "read"}),)
    with serve(configuration.model_copy(update={"keys": keys, "models": {}})) as server:
        for page in opened(browser, server):
            dialog = page.get_by_role("dialog", name="This server asks for a key")
            dialog.get_by_label("Key").fill("wrong-0123456789abcdef")
            dialog.get_by_role("button", name="Use this key").click()
            expect(dialog).to_contain_text("the key is none of this server's")
            dialog.get_by_label("Key").fill(KEY)
            page.keyboard.press("Enter")
            expect(dialog).to_be_hidden()
            query_of(page).fill("vaccines")
            expect(page.locator(".hit")).to_have_count(1)
            assert page.get_by_role("link", name="Generate").count() == 0
            kept = page.evaluate(
                "[document.cookie, localStorage.length, sessionStorage.length, location.href]"
            )
            assert kept == ["", 0, 0, str(server.base_url).rstrip("/") + "/"]
            assert KEY not in page.content()
            page.reload()
            expect(dialog).to_be_visible()
            page.keyboard.press("Escape")
            expect(page.locator("#start-error")).to_contain_text("this server asks for a key")


def test_a_phone_sees_all_of_it(phone: Page) -> None:
    query_of(phone).fill("vaccines work")
    expect(phone.locator(".hit")).to_have_count(10)
    fits(phone)
    phone.get_by_role("button", name="Compare the query with Vaccines").tap()
    expect(phone.locator(".both tbody tr")).to_have_count(2)
    fits(phone)
    go_to(phone, "Statistics")
    expect(phone.locator("dd").first).to_be_visible()
    fits(phone)
    generate(phone, "the quick", 30)
    fits(phone)


def fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_control_has_a_name(page: Page) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button, a, section, dialog")]
            .filter((each) => !(each.labels?.length || each.textContent.trim() || each.ariaLabel))
            .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    page.keyboard.press("Tab")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()


CONTRASTS = """(selectors) => {
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgb = (colour) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const light = (colour) => {
        const [r, g, b] = rgb(colour).map((each) => each / 255)
            .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (each) => {
        const colour = getComputedStyle(each).backgroundColor;
        return rgb(colour)[3] > 0 || !each.parentElement ? colour : behind(each.parentElement);
    };
    return selectors.flatMap((selector) => {
        const found = [...document.querySelectorAll(selector)].filter((each) => each.checkVisibility());
        if (!found.length) return [[selector, 0]];
        return found.map((each) => {
            const [low, high] = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => a - b);
            return [selector, (high + 0.05) / (low + 0.05)];
        });
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser: Browser, server: httpx.Client, scheme: Any) -> None:
    for page in opened(browser, server, color_scheme=scheme):
        query_of(page).fill("how do vaccines work")
        expect(page.locator(".hit mark").first).to_be_visible()
        expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
        seen = [
            "mark",
            ".hit p",
            ".about",
            ".shares th",
            ".status",
            "nav a",
            "#query",
            ".about button",
            "footer a",
        ]
        found = page.evaluate(CONTRASTS, seen)
        page.get_by_role("button", name="Compare the query with Vaccines").click()
        expect(page.locator(".both")).to_be_visible()
        found += page.evaluate(CONTRASTS, [".both th", ".both td", ".only .number", ".only .term", "label"])
        generate(page, "a" * 60)
        found += page.evaluate(CONTRASTS, ["#generate-error", "#generate"])
        generate(page, "the quick", 20)
        found += page.evaluate(CONTRASTS, [".token", ".prompt", "th.expert", ".evenness"])
        assert [each for each in found if each[1] < 4.5] == []


def test_words_are_put_together_from_the_terms_of_a_subword_vocabulary(page: Page) -> None:
    shares = "(word, shares) => import('/page/marks.js').then((m) => m.spelledShare(word, new Map(shares)))"

    def share(word: str, **terms: float) -> Any:
        return page.evaluate(f"([word, shares]) => ({shares})(word, shares)", [word, list(terms.items())])

    pieces = {"vac": 1.0, "##cine": 2.0, "cafe": 4.0, "s": 8.0}
    assert share("vaccine", **pieces) == 3
    assert share("vacation", **pieces) == 0
    assert share("vac", **pieces) == 1
    assert share("cine", **pieces) == 0
    assert share("café", **pieces) == 4
    assert share("vacs", **pieces) == 0
    assert share("vaccine", Ġvac=1.0, cine=2.0) == 3
    assert share("cine", Ġvac=1.0, cine=2.0) == 0
