// The box in which questions are written: Enter sends, Shift+Enter begins a line, Escape stops the answer.

import { h, icon } from "./dom.js";

const MOST_HEIGHT = 220;

export class Composer {
	/** `id` names the box; `label` is its name for screen readers. */
	constructor(id, label, placeholder, { onSend, onStop }) {
		this.box = h("textarea", { id, rows: 1, "aria-label": label, placeholder, onkeydown: (event) => this.key(event), oninput: () => this.grow() });
		this.button = h("button", { type: "button", class: "send", onclick: () => (this.isBusy ? onStop() : this.send()) });
		this.view = h("div", { class: "composer" }, this.box, this.button);
		this.onSend = onSend;
		this.onStop = onStop;
		this.setBusy(false);
	}

	setBusy(isBusy) {
		this.isBusy = isBusy;
		const name = isBusy ? "Stop" : "Send";
		this.button.replaceChildren(icon(name.toLowerCase()));
		this.button.setAttribute("aria-label", name);
		this.button.title = isBusy ? "Stop (Escape)" : "Send (Enter)";
	}

	set(text) {
		this.box.value = text;
		this.grow();
		this.box.focus();
	}

	key(event) {
		if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
			event.preventDefault();
			this.send();
		} else if (event.key === "Escape" && this.isBusy) {
			this.onStop();
		}
	}

	/** While an answer is written the text stays in the box. */
	send() {
		const text = this.box.value;
		if (this.isBusy || !text.trim()) return;
		this.set("");
		this.onSend(text);
	}

	grow() {
		this.box.style.height = "auto";
		this.box.style.height = `${Math.min(this.box.scrollHeight, MOST_HEIGHT)}px`;
	}
}
