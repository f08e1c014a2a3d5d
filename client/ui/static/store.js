// The conversations, kept in this browser and nowhere else: one entry of its storage for each.
//
//   {id, title, created, updated, messages: [{role, content, note?, error?}]}    times: ISO 8601

import { notice } from "./notice.js";

const PREFIX = "lorachat.conversation.";
const TITLE_LENGTH = 60;

/** A new one; it is kept only once it is saved. */
export function create() {
	const now = new Date().toISOString();
	return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", created: now, updated: now, messages: [] };
}

/** All conversations, the one used last first. */
export function all() {
	return Object.keys(localStorage)
		.filter((name) => name.startsWith(PREFIX))
		.map((name) => load(name.slice(PREFIX.length)))
		.filter(Boolean)
		.sort((a, b) => b.updated.localeCompare(a.updated));
}

export function load(id) {
	try {
		return JSON.parse(localStorage.getItem(PREFIX + id));
	} catch {
		return null;
	}
}

export function save(conversation, touch = true) {
	if (touch) conversation.updated = new Date().toISOString();
	conversation.title ||= titleOf(conversation);
	try {
		localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
	} catch {
		notice("This browser's storage is full: this conversation is not kept. Export and delete some.");
	}
	changed();
}

export function remove(id) {
	localStorage.removeItem(PREFIX + id);
	changed();
}

function titleOf({ messages }) {
	const words = (messages[0]?.content ?? "").replace(/\s+/g, " ").trim();
	return words.length > TITLE_LENGTH ? `${words.slice(0, TITLE_LENGTH - 1)}…` : words || "Untitled";
}

const changed = () => dispatchEvent(new Event("lorachat:conversations"));
// Another tab of this browser has changed one.
addEventListener("storage", ({ key }) => (key === null || key.startsWith(PREFIX)) && changed());
