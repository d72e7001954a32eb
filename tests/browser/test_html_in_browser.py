"""Pages in a real browser: sorting, filters, chart, routing, keyboard, widths."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up_records as fakes
import pytest
from isoflop_made_up import records as sweep_records

from modbench.report.write import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

PHONE, DESK = {"width": 380, "height": 800}, {"width": 1400, "height": 900}
PASSAGE = {
    "texts": [" the", "\n", "</script>", "<b>", "", " a", "b", "c", "d", "e"],
    "causal": [{"layer": 1, "selected": "1000010000"}, {"layer": 3, "selected": "0000000001"}],
    "topk": [{"layer": 1, "selected": "1100000000"}, {"layer": 3, "selected": "0000000001"}],
    "experts": [],
}


def _made(label: str, *, model_width: int, plan: Any = None, **fields: Any) -> Any:
    from isoflop_made_up import PLAN

    suite = {"isoflop": PLAN | (plan or {})}
    return fakes.make_record(label, model={"width": model_width}, suite=suite, **fields)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with a suite of thirteen rows, and one of isoFLOP curves."""
    folder = tmp_path_factory.mktemp("results")
    routing = fakes.make_routing() | {"passage": PASSAGE}
    records = [
        fakes.make_record("vanilla", loss=4.9),
        fakes.make_record("mod", loss=4.86, cost=0.6, routing=routing),
        fakes.make_record("lost", status="diverged", error="=cmd() <img src=x onerror=alert(1)>"),
    ]
    records += [
        fakes.make_record(f"token_choice:{n}", router="token_choice", loss=4.8 + n / 50, cost=1 + n / 9)
        for n in range(9)
    ]
    records.append(fakes.make_record("mixture_of_recursions", router="mod", loss=5.1, cost=1.4))
    write_report(fakes.store(folder / "fake", records), html=True)
    write_report(fakes.store(folder / "sweep", sweep_records(_made)), html=True)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        # Root, as in a container, has no sandbox.
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any, results: Path) -> Iterator[Any]:
    """Open a page; after the test, no page may have reported an error."""
    errors: list[str] = []
    contexts = []

    def open_page(name: str, size: dict[str, int] = DESK, **options: Any) -> Any:
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: errors.append(said.text) if said.type != "log" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: r.url.startswith("file:") or errors.append(r.url))
        page.goto((results / name).as_uri())
        page.wait_for_load_state("load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


FAKE, SWEEP = "fake/index.html", "sweep/index.html"


def first(page: Any) -> Any:
    return page.locator(".table").first


def column(page: Any, number: int) -> list[str]:
    cells = first(page).locator(f"tbody tr:not([hidden]) > :nth-child({number})")
    return list(cells.all_text_contents())


def test_a_click_or_the_keyboard_sorts_by_the_number_in_full_and_turns_it(visit: Any) -> None:
    page = visit(FAKE)
    head = first(page).locator("thead th", has_text="training tokens").locator("button")
    numbers = [text for text in column(page, 7) if text != "-"]
    ordered = sorted(numbers, key=lambda text: int(text.replace(",", "")))
    cells = first(page).locator("tbody tr > :nth-child(7)")
    assert numbers != ordered
    head.click()
    playwright.expect(cells).to_have_text([*ordered, "-"])  # without a number, last
    head.focus()
    page.keyboard.press("Enter")
    playwright.expect(cells).to_have_text([*reversed(ordered), "-"])


def test_a_filter_keeps_rows_with_all_words(visit: Any) -> None:
    page = visit(FAKE)
    first(page).locator("input[type=search]").fill("token_choice:1")
    assert column(page, 2) == ["token_choice:1"]
    assert first(page).locator("[role=status]").text_content() == "1 of 13 rows"


@pytest.mark.parametrize("name", [FAKE, SWEEP])
def test_the_axes_of_the_chart_can_be_chosen(visit: Any, name: str) -> None:
    page = visit(name, PHONE)
    marks = page.locator("#plot .mark-symbol.role-mark path")
    marks.first.wait_for()
    before = [mark.get_attribute("transform") for mark in marks.all()]
    assert "validation loss (nats/token): " in marks.first.get_attribute("aria-label")
    other = page.locator("#axes select").nth(1).locator("option").nth(1).text_content()
    page.locator("#axes select").nth(1).select_option(index=1)
    page.locator(f"#plot path[aria-label*='{other}: ']").first.wait_for()
    assert len(marks.all()) == len(before)
    assert [mark.get_attribute("transform") for mark in marks.all()] != before


def test_the_slider_shows_the_tokens_that_a_layer_processes(visit: Any) -> None:
    page = visit(FAKE)
    said, tokens = page.locator("#viewer-said"), page.locator("#viewer-text span")
    assert said.text_content() == "Layer 1 processes 2 of 10 tokens."
    assert [at for at in range(10) if tokens.nth(at).get_attribute("style")] == [0, 5]
    assert tokens.nth(2).text_content() == "</script>"
    page.locator("#viewer-layer").focus()
    page.keyboard.press("ArrowRight")
    assert said.text_content() == "Layer 2 processes 10 of 10 tokens."


def test_a_table_is_saved_with_its_numbers_in_full_and_no_formula(visit: Any) -> None:
    page = visit(FAKE)
    first(page).locator("input[type=search]").fill("mod")
    page.evaluate("document.querySelector('.table tbody tr:not([hidden]) td').textContent = '=cmd()'")
    with page.expect_download() as started:
        first(page).locator(".bar button").click()
    lines = Path(started.value.path()).read_text().splitlines()
    assert lines[0].startswith("group,scheme,seeds,validation loss (nats/token),")
    assert lines[1].startswith("'=cmd(),mod,1,4.86,")


@pytest.mark.parametrize("name", [FAKE, SWEEP, "index.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_only_tables_scroll_sideways(
    visit: Any, tmp_path: Path, name: str, scheme: str, size: dict[str, int]
) -> None:
    page = visit(name, size, color_scheme=scheme)
    wide = page.evaluate(
        "[...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('.scroll, svg, select')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    picture = page.screenshot(full_page=True, path=tmp_path / "page.png")
    assert len(picture) > 10_000


def test_every_control_has_a_name_and_can_be_reached(visit: Any) -> None:
    page = visit(FAKE)
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, a, input, select')].filter(e => !(e.textContent.trim() "
        "|| e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.outerHTML)"
    )
    assert nameless == []
    assert page.locator("main, header, nav").count() == 3
    unreachable = page.evaluate(
        "[...document.querySelectorAll('button, a[href], input, select, .scroll')]"
        ".filter(e => e.tabIndex < 0).length"
    )
    assert unreachable == 0


def test_without_scripts_the_tables_are_there(visit: Any) -> None:
    page = visit(FAKE, java_script_enabled=False)
    assert "4.860" in first(page).text_content()
    assert page.locator("noscript").first.is_visible()
