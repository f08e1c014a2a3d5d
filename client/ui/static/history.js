// The list of conversations: open, rename, delete, export, import.

import { h, icon, iconButton } from "./dom.js";
import { download, read, toJson, toMarkdown } from "./formats.js";
import { notice } from "./notice.js";
import * as store from "./store.js";

export class HistoryList {
	constructor({ isOpen, onOpen, onNew, current }) {
		this.isOpen = isOpen;
		this.onOpen = onOpen;
		this.onNew = onNew;
		this.current = current;
		this.list = h("ul", { class: "conversations" });
		this.file = h("input", { type: "file", accept: ".json,.md", hidden: true, "aria-label": "File to import", onchange: () => this.importFile() });
		this.toggle = h("button", { type: "button", class: "tool", "aria-expanded": "false", "aria-controls": "history", "aria-label": "Conversations", title: "Conversations", onclick: () => this.expand() }, icon("list"));
		const tool = (name, label, act) => h("button", { type: "button", class: "quiet", onclick: act }, icon(name), label);
		this.panel = h(
			"nav",
			{ id: "history", class: "history", "aria-label": "Conversations" },
			h("button", { type: "button", class: "new", onclick: () => this.pick(() => this.onNew()) }, icon("plus"), "New chat"),
			this.list,
			h(
				"div",
				{ class: "files" },
				tool("download", "Export all (JSON)", () => this.exportAll()),
				tool("download", "Export this (Markdown)", () => this.exportOpen()),
				tool("upload", "Import", () => this.file.click()),
				this.file,
			),
		);
		this.view = h("div", { class: "aside" }, this.toggle, this.panel);
		addEventListener("lorachat:conversations", () => this.draw());
		addEventListener("keydown", ({ key }) => key === "Escape" && this.expand(false));
	}

	/** On a narrow screen the list lies over the page until something is picked. */
	expand(isExpanded = this.toggle.getAttribute("aria-expanded") === "false") {
		this.toggle.setAttribute("aria-expanded", isExpanded);
		this.view.classList.toggle("open", isExpanded);
	}

	pick(act) {
		this.expand(false);
		act();
	}

	/** The focus stays where it was; a name that is being written is not taken away. */
	draw() {
		if (this.list.querySelector("input")) return; // it draws once it is over
		const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
		const row = focused?.closest("li");
		const place = row && { id: row.dataset.id, index: [...this.list.children].indexOf(row), button: [...row.children].indexOf(focused) };
		const conversations = store.all();
		this.list.replaceChildren(...conversations.map((conversation) => this.row(conversation)));
		if (!conversations.length) this.list.append(h("li", { class: "small" }, "Conversations are kept in this browser only."));
		if (place) this.focus(place);
	}

	/** The same button of the same conversation, else of the one that is now in its place. */
	focus({ id, index, button }) {
		const rows = [...this.list.children];
		const row = rows.find(({ dataset }) => dataset.id === id) ?? rows[Math.min(index, rows.length - 1)];
		(row.children[button] ?? this.panel.querySelector(".new")).focus({ preventScroll: true });
	}

	row(conversation) {
		const { id, title } = conversation;
		const row = h(
			"li",
			{ "data-id": id },
			h("button", { type: "button", class: "title", title, "aria-current": this.isOpen(id) ? "true" : null, onclick: () => this.pick(() => this.onOpen(id)) }, title),
			iconButton("edit", `Rename “${title}”`, () => this.rename(row, conversation)),
			iconButton("trash", `Delete “${title}”`, () => this.remove(conversation)),
		);
		return row;
	}

	rename(row, { id, title }) {
		let isOver = false;
		const end = (isKept, isByKey = true) => {
			if (isOver) return;
			isOver = true;
			const conversation = store.load(id);
			const name = box.value.trim();
			if (isKept && name && conversation) {
				conversation.title = name;
				store.save(conversation, false);
				if (this.isOpen(id)) this.current().title = name;
			}
			row.replaceChildren();
			this.draw();
			if (isByKey) this.focus({ id, index: 0, button: 0 });
		};
		const box = h("input", {
			"aria-label": "Name of the conversation",
			value: title,
			onblur: () => end(true, false),
			onkeydown: (event) => {
				event.stopPropagation();
				if (event.key !== "Enter" && event.key !== "Escape") return;
				event.preventDefault(); // or Enter would press the button that has the focus next
				end(event.key === "Enter");
			},
		});
		row.replaceChildren(box);
		box.select();
	}

	async remove({ id, title }) {
		const wasOpen = this.isOpen(id);
		if (wasOpen) await this.onNew(); // an answer being written ends, and is kept, before it can be deleted
		const conversation = store.load(id);
		if (!conversation) return;
		store.remove(id);
		notice(`Deleted “${title}”.`, "Undo", () => {
			store.save(conversation, false);
			if (wasOpen) this.onOpen(id);
		});
	}

	exportAll() {
		const conversations = store.all();
		if (!conversations.length) notice("There is no conversation to export yet.");
		else download("lorachat-conversations.json", toJson(conversations), "application/json");
	}

	exportOpen() {
		const conversation = this.current();
		if (!conversation.messages.length) notice("There is nothing to export yet: this conversation is empty.");
		else download(`${conversation.title}.md`, toMarkdown(conversation), "text/markdown");
	}

	async importFile() {
		const [file] = this.file.files;
		this.file.value = "";
		if (!file) return;
		try {
			const conversations = read(await file.text());
			for (const conversation of conversations) store.save(conversation, false);
			notice(`Imported ${conversations.length === 1 ? "1 conversation" : `${conversations.length} conversations`}.`);
			if (conversations.length === 1) this.pick(() => this.onOpen(conversations[0].id));
		} catch (error) {
			notice(error.message);
		}
	}
}
