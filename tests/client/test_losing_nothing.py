"""What a reader has written, named or has in sight stays theirs, also while an answer is being written."""

import json

import pytest
from playwright.sync_api import expect

from tests.client.pages import ask, bot, pick, send_button

pytestmark = pytest.mark.browser


def conversations(page):
    return page.locator(".conversations .title")


def is_at_end(place):
    return place.evaluate("e => e.scrollHeight - e.scrollTop - e.clientHeight < 80")


def test_a_conversation_deleted_while_it_is_answered_stays_deleted(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "endless")
    ask(page, "Go on")
    expect(bot(page)[0]).to_contain_text("more more more")
    conversations(page).first.hover()
    page.get_by_role("button", name="Delete “Go on”").click()
    expect(page.get_by_role("heading", name="Ask something")).to_be_visible()
    expect(send_button(page)).to_be_visible()
    expect(conversations(page)).to_have_count(0)
    page.locator(".notice").get_by_role("button", name="Undo").click()
    expect(conversations(page)).to_have_text(["Go on"])
    expect(bot(page)[0]).to_contain_text("more more more")


def test_a_name_can_be_written_while_an_answer_is(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "endless")
    ask(page, "Go on")
    expect(bot(page)[0]).to_contain_text("more more more")
    conversations(page).first.hover()
    page.get_by_role("button", name="Rename “Go on”").click()
    name = page.get_by_label("Name of the conversation")
    name.fill("Half a na")
    # As each save of the answer says, every second or so.
    page.evaluate("dispatchEvent(new Event('lorachat:conversations'))")
    expect(name).to_be_focused()
    name.press_sequentially("me")
    name.press("Enter")
    expect(conversations(page)).to_have_text(["Half a name"])
    expect(conversations(page).first).to_be_focused()
    page.evaluate("dispatchEvent(new Event('lorachat:conversations'))")
    expect(conversations(page).first).to_be_focused()
    send_button(page, "Stop").click()
    expect(conversations(page)).to_have_text(["Half a name"])


@pytest.mark.parametrize("way", ["Retry", "Edit and resend"])
def test_messages_dropped_by_asking_an_earlier_question_again_come_back(open_page, address, way):
    page = open_page(address)
    pick(page, "chat-model", "smalltalk")
    for count, question in enumerate(("One", "Two", "Three"), 1):
        ask(page, question)
        expect(page.locator(".turn.assistant")).to_have_count(count)
        expect(bot(page)[1]).to_contain_text("finished")
    page.get_by_role("button", name=way).first.click()
    if way != "Retry":
        page.get_by_label("Edited message").fill("Uno")
        page.get_by_label("Edited message").press("Enter")
    expect(page.locator(".notice")).to_contain_text("Dropped 4 later messages.")
    expect(page.locator(".turn.user")).to_have_count(1)
    page.locator(".notice").get_by_role("button", name="Bring back").click()
    expect(page.locator(".turn.user .body")).to_have_text(["One", "Two", "Three"])
    expect(page.locator(".turn.assistant .note")).to_contain_text(["finished"] * 3)
    page.reload()
    expect(page.locator(".turn.user .body")).to_have_text(["One", "Two", "Three"])


def test_one_question_is_edited_at_a_time(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "smalltalk")
    for count, question in enumerate(("One", "Two"), 1):
        ask(page, question)
        expect(page.locator(".turn.assistant")).to_have_count(count)
        expect(bot(page)[1]).to_contain_text("finished")
    page.get_by_role("button", name="Edit and resend").first.click()
    page.get_by_role("button", name="Edit and resend").first.click()
    expect(page.get_by_label("Edited message")).to_have_count(1)
    expect(page.get_by_label("Edited message")).to_have_value("Two")


@pytest.mark.parametrize("where", ["chat", "compare"])
def test_the_end_stays_in_sight_unless_the_reader_has_left_it(open_page, address, where):
    page = open_page(address)
    box, place = "question", page.locator("lora-chat .transcript")
    if where == "compare":
        page.get_by_role("tab", name="Compare").click()
        box, place = "compare-question", page.locator("#left")
    tall = "<p>line</p>" * 60  # at once, as a long block of code
    lines = [
        {"text": "line", "settled": tall, "tail": "", "note": []},
        {"text": "", "html": tall, "note": ["finished"], "end": {"error": None}},
    ]
    body = "".join(json.dumps(line) + "\n" for line in lines)
    page.route("**/lorachat/answers", lambda route: route.fulfill(body=body))
    ask(page, "A long one", box)
    expect(place.locator(".note").last).to_contain_text("finished")
    assert is_at_end(place)

    page.unroute("**/lorachat/answers")
    pick(page, "chat-model" if where == "chat" else "left-model", "endless")
    ask(page, "Go on", box)
    expect(place).to_contain_text("more more more")
    place.evaluate("e => e.scrollTop = 0")
    seen = place.inner_text()
    page.wait_for_function(
        "([before, place]) => document.querySelector(place).innerText.length > before + 40",
        arg=[len(seen), "#left" if where == "compare" else "lora-chat .transcript"],
    )
    assert place.evaluate("e => e.scrollTop") == 0
    send_button(page, "Stop", box).click()


def test_a_damaged_file_is_refused_whole(open_page, address, tmp_path):
    page = open_page(address)
    message = {"role": "user", "content": "Hi"}
    about = {"title": "t", "created": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z"}
    for damage in ({"note": "text"}, {"note": [1]}, {"error": {"sentence": 1}}, {"content": None}):
        file = tmp_path / "damaged.json"
        kept = [{**about, "messages": [message]}, {**about, "messages": [{**message, **damage}]}]
        file.write_text(json.dumps({"format": "lorachat-conversations/1", "conversations": kept}))
        page.evaluate("document.querySelector('.notice')?.replaceChildren()")
        page.get_by_label("File to import").set_input_files(file)
        expect(page.locator(".notice")).to_contain_text("damaged; nothing was imported")
    expect(conversations(page)).to_have_count(0)


def test_the_reports_prompts_do_not_come_between_two_keys(open_page, address):
    page = open_page(address)
    held = []

    def hold(route):  # Playwright marks its handlers, so it must be a function of ours
        held.append(route)

    page.route("**/prompts?*", hold)
    page.get_by_role("tab", name="Compare").click()
    with page.expect_request("**/prompts?*"):
        page.get_by_role("button", name="Prompt set").click()
    box = page.locator("#prompts")
    box.focus()
    while held:
        with page.expect_response("**/prompts?*"):
            held.pop().fulfill(json={"prompts": ["Theirs"], "source": "the training report"})
    page.evaluate("new Promise((done) => setTimeout(done, 100))")
    expect(box).to_have_value("")
    page.keyboard.type("Mine")
    expect(box).to_have_value("Mine")
