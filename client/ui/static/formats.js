// Conversations as files, out and in: JSON (any number) and Markdown (one), both without loss.

import { create } from "./store.js";

const FORMAT = "lorachat-conversations/1";
const MARK = "<!-- lorachat ";

export function toJson(conversations) {
	const kept = conversations.map(({ title, created, updated, messages }) => ({ title, created, updated, messages }));
	return JSON.stringify({ format: FORMAT, conversations: kept }, null, 2);
}

export function toMarkdown({ title, created, updated, messages }) {
	const turns = messages.map(({ content, ...about }) => {
		const who = about.role === "user" ? "You" : (about.note?.[0] ?? "Assistant");
		return `${mark(about)}\n### ${who}\n\n${content.replaceAll(MARK, `${MARK}\\`)}\n`;
	});
	return `# ${title}\n\n${mark({ created, updated })}\n\n${turns.join("\n")}`;
}

/** The conversations of a file of either form, each new. Throws an Error with a sentence. */
export function read(text) {
	const found = text.trimStart().startsWith("{") ? readJson(text) : readMarkdown(text);
	return found.map((conversation) => ({ ...create(), ...conversation }));
}

function readJson(text) {
	let data;
	try {
		data = JSON.parse(text);
	} catch {
		throw new Error("This file is not JSON. Choose one that was exported here.");
	}
	if (data.format !== FORMAT || !Array.isArray(data.conversations)) {
		throw new Error("This file holds no conversations of this client. Choose one that was exported here.");
	}
	return data.conversations.map(({ title, created, updated, messages }) => checked({ title, created, updated, messages }));
}

function readMarkdown(text) {
	const [head, about, ...turns] = text.replaceAll("\r\n", "\n").split(/^<!-- lorachat (?=\{)/m);
	if (about === undefined) {
		throw new Error("This file holds no conversation of this client. Choose one that was exported here.");
	}
	const messages = turns.map((turn) => {
		const [, json, content] = turn.match(/^(.*) -->\n### .*\n\n([^]*)$/) ?? [];
		return { ...parsed(json), content: (content ?? "").replace(/\n{1,2}$/, "").replaceAll(`${MARK}\\`, MARK) };
	});
	return [checked({ title: head.replace(/^# /, "").trim(), ...parsed(about.match(/^(.*) -->/)?.[1]), messages })];
}

function checked(conversation) {
	const { title, created, updated, messages } = conversation;
	const isText = [title, created, updated].every((text) => typeof text === "string");
	const areMessages = Array.isArray(messages) && messages.every(isMessage);
	if (!isText || !areMessages) throw new Error("A conversation in this file is damaged; nothing was imported.");
	return conversation;
}

function isMessage(message) {
	const { role, content, note = [], error } = message ?? {};
	const areTexts = (values) => Array.isArray(values) && values.every((value) => typeof value === "string");
	return ["user", "assistant"].includes(role) && areTexts([content]) && areTexts(note) && (error == null || areTexts([error.sentence, error.next_step]));
}

function parsed(json) {
	try {
		return JSON.parse(json);
	} catch {
		throw new Error("A conversation in this file is damaged; nothing was imported.");
	}
}

// "--" would end the comment early in a strict reader.
const mark = (about) => `${MARK}${JSON.stringify(about).replaceAll("--", "-\\u002d")} -->`;

/** Let the reader keep a text as a file. */
export function download(name, text, type) {
	const link = document.createElement("a");
	link.href = URL.createObjectURL(new Blob([text], { type }));
	link.download = name.replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 80);
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
