// One turn of a conversation on the page: what was said, the line of figures, and what can be done with it.

import { answer } from "./api.js";
import { h, iconButton } from "./dom.js";
import { notice } from "./notice.js";

/** A question, or an answer whose HTML is given. `actions` are buttons. */
export function turn(message, html, actions) {
	const isUser = message.role === "user";
	const name = isUser ? "You" : "Answer";
	const view = h(
		"article",
		{ class: `turn ${message.role}`, "aria-label": name },
		h("div", { class: "body" }),
		h("div", { class: "foot" }, h("p", { class: "note" }), h("div", { class: "actions" }, ...actions)),
	);
	show(view, message, html);
	return view;
}

/** Draw the message anew; `html` only where it has changed. */
export function show(view, message, html) {
	const body = view.querySelector(".body");
	if (message.role === "user") body.textContent = message.content;
	else if (html !== undefined) body.innerHTML = html;
	view.querySelector(".note").replaceChildren(...note(message.note ?? []));
	view.querySelector(".problem")?.remove();
	if (message.error) view.querySelector(".body").after(problem(message.error));
}

export function problem({ sentence, next_step }) {
	return h("p", { class: "problem", role: "alert" }, h("strong", {}, sentence), ` ${next_step}`);
}

function note(phrases) {
	return phrases.flatMap((phrase, index) => [index ? " · " : "", h("span", {}, phrase)]);
}

export function copyButton(text) {
	return iconButton("copy", "Copy", () => copy(text()));
}

async function copy(text) {
	try {
		await navigator.clipboard.writeText(text);
		notice("Copied.");
	} catch {
		notice("This browser does not let the page copy: mark the text and press Ctrl-C.");
	}
}

// The buttons beside code, wherever it is shown.
document.addEventListener("click", ({ target }) => {
	const button = target.closest?.("[data-copy]");
	if (button) copy(button.closest("figure").querySelector("code").textContent);
});

/**
 * Ask and write the answer into `view` and `message`; returns the last line's `end`, or null if it was stopped.
 * `onText` is called after each redraw.
 */
export async function write(view, message, body, signal, onText = () => {}) {
	const started = performance.now();
	const place = view.querySelector(".body");
	const tail = h("div", { class: "tail" });
	place.replaceChildren(tail);
	view.setAttribute("aria-busy", "true"); // read out once it is whole
	try {
		for await (const line of answer(body, signal)) {
			message.content += line.text;
			message.note = line.note;
			if (line.end) {
				message.error = line.end.error;
				show(view, message, line.html);
				onText();
				return line.end;
			}
			if (line.settled) tail.insertAdjacentHTML("beforebegin", line.settled);
			tail.innerHTML = line.tail;
			tail.classList.toggle("waiting", !message.content);
			show(view, message);
			onText();
		}
	} catch (error) {
		if (error.name !== "AbortError") throw error;
		message.note = [body.model, `stopped after ${seconds((performance.now() - started) / 1000)}`];
		tail.classList.remove("waiting");
		show(view, message);
		return null;
	} finally {
		view.removeAttribute("aria-busy");
	}
	return null;
}

const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`);
