"""Notebook 06 in JupyterLab: the model writes, gamma is moved by mouse and keyboard, and the next token obeys."""

import re

import pytest

pytestmark = pytest.mark.browser

WRITTEN = r"n => Number((document.querySelector('.mobile-nb-tally').textContent.match(/^\d+/) || [0])[0]) >= n"
OVER = """cells => document.querySelector('[data-mime-type$="jupyter.stderr"]')
    || [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].at(-1).textContent === `[${cells}]:`"""
AFTER = """mark => {
    // who wrote the tokens behind the last ⟨γ a → b⟩ of the text
    const marks = [...document.querySelectorAll('.mobile-nb-text small')];
    if (!marks.length || !marks.at(-1).textContent.includes(mark)) return [];
    const found = [];
    for (let e = marks.at(-1).nextElementSibling; e; e = e.nextElementSibling) found.push(e.tagName);
    return found;
}"""


def run_all(page, address):
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    cells = page.locator(".jp-CodeCell").count()
    page.wait_for_function(OVER, arg=cells)
    errors = page.locator('[data-mime-type$="jupyter.stderr"]')
    assert errors.count() == 0, errors.first.inner_text()


def test_gamma_moves_while_the_model_writes(lab, page, screenshots):
    run_all(page, lab("06_control_room.ipynb"))
    start, stop = page.locator(".mobile-nb-start"), page.locator(".mobile-nb-stop")
    gamma = page.locator(".widget-hslider", has_text="γ")
    handle, track = gamma.locator(".noUi-handle"), gamma.locator(".noUi-target")
    start.scroll_into_view_if_needed()
    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_function("() => document.querySelector('.widget-hslider .widget-readout').textContent === '0.00'")
    page.screenshot(path=screenshots / "1_before.png")

    pace = page.get_by_label("pace", exact=True)
    pace.select_option("4 times slower")
    start.click()
    page.wait_for_function("() => document.querySelector('.mobile-nb-start').disabled")  # the text before is gone
    page.wait_for_function(WRITTEN, arg=1)
    pace.select_option("16 times slower")  # from here on, so that the text is still coming when it is stopped
    page.wait_for_function(WRITTEN, arg=4)
    begin, end = handle.bounding_box(), track.bounding_box()
    page.mouse.move(begin["x"] + begin["width"] / 2, begin["y"] + begin["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"] + end["width"] + 20, begin["y"] + begin["height"] / 2, steps=8)
    page.mouse.up()
    page.wait_for_function(f"mark => ({AFTER})(mark).length >= 3", arg="0 → 1")
    assert set(page.evaluate(AFTER, "0 → 1")) == {"B"}, "with gamma at 1 the big model writes every token"
    page.screenshot(path=screenshots / "2_moved_by_mouse.png")

    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_function(f"mark => ({AFTER})(mark).length >= 3", arg="1 → 0")
    assert set(page.evaluate(AFTER, "1 → 0")) == {"SPAN"}, "with gamma at 0 the little model writes every token"
    page.screenshot(path=screenshots / "3_moved_by_keyboard.png")

    stop.click()
    page.wait_for_function("() => !document.querySelector('.mobile-nb-start').disabled")
    text = page.locator(".mobile-nb-text").inner_text()
    assert re.findall(r"⟨γ \S+ → \S+⟩", text) == ["⟨γ 0 → 1⟩", "⟨γ 1 → 0⟩"]
    assert "The answer is" not in text, "it was stopped in mid-text"
    assert "simulated on" in page.locator(".mobile-nb-tally").inner_text()
    assert page.locator(".mobile-nb-figures .js-plotly-plot").count() == 2
    page.locator(".mobile-nb-figures").scroll_into_view_if_needed()
    page.screenshot(path=screenshots / "4_replayed.png")

    prompt = page.get_by_placeholder("Text that the model")
    prompt.fill("")
    prompt.press("Tab")  # the box tells the kernel when it is left
    page.wait_for_timeout(1000)
    page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
    start.click()
    page.wait_for_selector("[role=alert]:has-text('the prompt is empty')")

    slots = page.locator(".mobile-nb-slots")
    slots.scroll_into_view_if_needed()
    before = slots.inner_html()
    page.get_by_title("one token on").click()
    page.wait_for_function("old => document.querySelector('.mobile-nb-slots').innerHTML !== old", arg=before)
    page.screenshot(path=screenshots / "5_theatre.png")
