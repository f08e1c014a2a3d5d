// <lora-chat>: one conversation with one model, and the list of all conversations beside it.

import { post } from "./api.js";
import { Composer } from "./composer.js";
import { h, iconButton } from "./dom.js";
import { follow } from "./follow.js";
import { HistoryList } from "./history.js";
import { notice } from "./notice.js";
import * as settings from "./settings.js";
import * as store from "./store.js";
import { told } from "./told.js";
import { copyButton, show, turn, write } from "./turn.js";

const OPEN = "lorachat.open"; // of this tab, so that a reload shows the same conversation
const SAVE_MILLISECONDS = 1500;
const STARTERS = ["My computer won't start", "What is artificial intelligence?", "Write a haiku about autumn"];

class Chat extends HTMLElement {
	connectedCallback() {
		if (this.transcript) return; // moved, not new
		this.history = new HistoryList({
			isOpen: (id) => id === this.conversation?.id,
			onOpen: (id) => this.open(store.load(id)),
			onNew: () => this.open(store.create()),
			current: () => this.conversation,
		});
		this.composer = new Composer("question", "Message", "Write a message", {
			onSend: (text) => this.ask(text),
			onStop: () => this.stop(),
		});
		this.transcript = h("div", { class: "transcript", role: "log", tabindex: 0, "aria-label": "Conversation" });
		this.toEnd = follow(this.transcript);
		this.column = h("div", { class: "talk" }, this.transcript, this.composer.view, h("p", { class: "hint small" }, "Enter sends · Shift+Enter begins a line · Escape stops"));
		this.append(this.history.view, this.column);
		this.open(store.load(sessionStorage.getItem(OPEN)) ?? store.create());
		addEventListener("pagehide", () => this.running && this.keep());
	}

	/** Show a conversation; an answer being written ends first. */
	async open(conversation) {
		await this.stop();
		this.conversation = conversation;
		sessionStorage.setItem(OPEN, conversation.id);
		this.history.draw();
		conversation.messages.forEach(interrupted);
		const answers = conversation.messages.map(({ role, content }) => (role === "assistant" ? content : ""));
		const html = conversation.messages.length ? await post("html", { texts: answers }).catch(() => null) : [];
		if (this.conversation !== conversation) return;
		this.views = conversation.messages.map((message, index) => this.view(message, html?.[index]));
		this.views.forEach((view, index) => {
			// Without the page's server the text is shown as it was written.
			if (html === null && answers[index]) view.querySelector(".body").textContent = answers[index];
		});
		this.transcript.replaceChildren(...this.views);
		if (!this.views.length) this.welcome();
		this.toEnd(true);
	}

	welcome() {
		const starters = STARTERS.map((text) => h("button", { type: "button", onclick: () => this.ask(text) }, text));
		this.transcript.replaceChildren(h("div", { class: "welcome" }, h("h2", {}, "Ask something"), h("p", {}, "Answers are written by the model picked above, and kept in this browser only."), h("div", { class: "starters" }, ...starters)));
	}

	view(message, html) {
		const index = () => this.views.indexOf(view);
		const actions =
			message.role === "user"
				? [copyButton(() => message.content), iconButton("edit", "Edit and resend", () => this.edit(index()))]
				: [
						copyButton(() => message.content),
						iconButton("retry", "Retry", () => this.retry(index())),
						iconButton("undo", "Undo", () => this.undo(), { class: "tool undo" }),
					];
		const view = turn(message, html, actions);
		return view;
	}

	async ask(text) {
		await this.stop();
		if (!this.views.length) this.transcript.replaceChildren();
		this.add({ role: "user", content: text });
		await this.answer();
	}

	/** Answer a question once more; what came after it is dropped. */
	async retry(index) {
		await this.stop();
		this.offerBack(index + 1);
		this.cut(index);
		await this.answer();
	}

	/** Take the last question back into the box. */
	async undo() {
		await this.stop();
		const last = this.conversation.messages.findLastIndex(({ role }) => role === "user");
		const { content } = this.conversation.messages[last];
		this.cut(last);
		this.keep();
		if (!this.views.length) this.welcome();
		this.composer.set(content);
	}

	/** Write a question anew, in its place; sending it drops what came after it. */
	edit(index) {
		const view = this.views[index];
		const message = this.conversation.messages[index];
		this.leaveEditor?.();
		const done = (this.leaveEditor = () => {
			this.leaveEditor = null;
			editor.view.remove();
			view.classList.remove("editing");
		});
		const editor = new Composer("edited-question", "Edited message", "", {
			onSend: async (text) => {
				await this.stop();
				this.leaveEditor = null;
				this.offerBack(index + 2);
				this.cut(index);
				await this.ask(text);
			},
			onStop: () => {},
		});
		editor.view.append(h("button", { type: "button", class: "quiet", onclick: done }, "Cancel"));
		editor.box.addEventListener("keydown", ({ key }) => key === "Escape" && done());
		view.classList.add("editing");
		view.prepend(editor.view);
		editor.set(message.content);
	}

	/** End the answer; what it has said so far stays. Returns once it has ended. */
	async stop() {
		this.abort?.abort();
		await this.running;
	}

	answer() {
		this.running = this.run().finally(() => {
			this.running = this.abort = null;
			this.composer.setBusy(false);
		});
		return this.running;
	}

	async run() {
		const question = told(this.conversation.messages);
		const message = { role: "assistant", content: "", isOpen: true };
		const view = this.add(message);
		this.composer.setBusy(true);
		this.abort = new AbortController();
		this.toEnd(true);
		let saved = performance.now();
		try {
			const body = { model: settings.get("model") ?? "", messages: settings.withSystem(question), sampling: settings.sampling() };
			await write(view, message, body, this.abort.signal, () => {
				this.toEnd();
				if (performance.now() - saved < SAVE_MILLISECONDS) return;
				saved = performance.now();
				this.keep();
			});
		} catch (error) {
			message.error = { sentence: error.message, next_step: "Change it under Settings, then retry." };
			show(view, message, "");
		}
		delete message.isOpen;
		this.keep();
		this.toEnd();
	}

	add(message) {
		const view = this.view(message, "");
		this.conversation.messages.push(message);
		this.views.push(view);
		this.transcript.append(view);
		this.keep();
		return view;
	}

	cut(index) {
		this.conversation.messages.length = index;
		for (const view of this.views.splice(index)) view.remove();
	}

	/** The messages from this one on are about to be dropped: let the reader take that back. */
	offerBack(index) {
		const { id, messages } = this.conversation;
		const before = [...messages];
		const count = before.length - index;
		if (count <= 0) return;
		notice(`Dropped ${count === 1 ? "1 later message" : `${count} later messages`}.`, "Bring back", async () => {
			const isOpen = this.conversation.id === id;
			if (isOpen) await this.stop();
			const conversation = store.load(id);
			if (!conversation) return;
			conversation.messages = before;
			store.save(conversation);
			if (isOpen) await this.open(conversation);
		});
	}

	keep() {
		if (this.conversation.messages.length) store.save(this.conversation);
		else store.remove(this.conversation.id);
	}
}

/** An answer that was being written when the page was closed or loaded anew: say so. */
function interrupted(message) {
	if (!message.isOpen) return;
	delete message.isOpen;
	if (message.content) message.note = [message.note?.[0], "interrupted"].filter(Boolean);
	else message.error = { sentence: "The page was closed before this answer came.", next_step: "Retry to ask again." };
}

customElements.define("lora-chat", Chat);
