// The fixed prompts of a training report to two models, prompt by prompt, as a table that can be exported.

import { get } from "./api.js";
import { h } from "./dom.js";
import { download } from "./formats.js";
import { notice } from "./notice.js";
import * as settings from "./settings.js";
import { turn, write } from "./turn.js";

export class Batch {
	constructor() {
		this.rows = [];
		this.prompts = h("textarea", { id: "prompts", rows: 6, "aria-label": "Prompts, one a line" });
		this.source = h("p", { class: "small" });
		this.greedy = h("input", { type: "checkbox", id: "greedy", checked: true });
		this.start = h("button", { type: "button", class: "primary", onclick: () => (this.abort ? this.abort.abort() : this.run()) }, "Run");
		this.progress = h("span", { class: "small", role: "status" });
		this.exports = h(
			"span",
			{ class: "files" },
			...["CSV", "JSON", "Markdown"].map((form) => h("button", { type: "button", class: "quiet", onclick: () => this.export(form) }, form)),
		);
		this.table = h("div", { class: "results" });
		this.view = h(
			"div",
			{ class: "talk wide batch" },
			h("div", { class: "row" }, h("label", { for: "prompts" }, "Prompts, one a line"), h("button", { type: "button", class: "quiet", onclick: () => this.fill() }, "Fill in the report's prompts")),
			this.prompts,
			this.source,
			h("div", { class: "row" }, this.start, h("label", { for: "greedy" }, this.greedy, " Greedy, as in the training report"), this.progress, this.exports),
			this.table,
		);
		this.exports.hidden = true;
		this.isUntouched = true;
		this.prompts.addEventListener("input", () => {
			this.isUntouched = false;
			this.source.textContent = ""; // they are the reader's own now
		});
		addEventListener("lorachat:settings", ({ detail }) => detail === "right" && this.begin());
	}

	/** Fill in the prompts, unless the reader has written some, or is about to: they would come between two keys. */
	begin() {
		const isWanted = () => this.isUntouched && document.activeElement !== this.prompts;
		if (isWanted() && !this.view.hidden) this.fill(isWanted);
	}

	/** The prompts of the report of the model on the right, else of the left. */
	async fill(isWanted = () => true) {
		try {
			const model = [settings.get("right"), settings.get("left")].find((name) => name && name !== "base");
			const { prompts, source } = await (await get(`prompts?model=${encodeURIComponent(model ?? "")}`)).json();
			if (!isWanted()) return; // something was written meanwhile
			this.prompts.value = prompts.map((prompt) => prompt.replaceAll("\n", "\\n")).join("\n");
			this.source.textContent = `From ${source}.`;
			this.isUntouched = true;
		} catch (error) {
			this.source.textContent = `${error.sentence} ${error.next_step}`;
		}
	}

	async run() {
		const prompts = this.prompts.value.split("\n").filter((line) => line.trim());
		const models = [settings.get("left") ?? "", settings.get("right") ?? ""];
		if (!prompts.length) return notice("Write a prompt first, one a line.");
		this.rows = [];
		this.abort = new AbortController();
		this.start.textContent = "Stop";
		this.exports.hidden = true;
		const head = h("tr", {}, h("th", { scope: "col" }, "Prompt"), ...models.map((model) => h("th", { scope: "col" }, model)));
		const body = h("tbody");
		this.table.replaceChildren(h("table", {}, h("caption", { class: "hidden" }, "Answers of both models"), h("thead", {}, head), body));
		try {
			const sampling = { ...settings.sampling(), ...(this.greedy.checked ? { temperature: 0 } : {}) };
			for (const [index, line] of prompts.entries()) {
				if (this.abort.signal.aborted) break;
				this.progress.textContent = `${index + 1} of ${prompts.length}`;
				await this.ask(line.replaceAll("\\n", "\n"), models, sampling, body);
			}
			this.progress.textContent = this.abort.signal.aborted ? `Stopped after ${this.rows.length} of ${prompts.length}.` : `${prompts.length} prompts answered.`;
		} catch (error) {
			this.progress.textContent = error.message;
		}
		this.start.textContent = "Run";
		this.abort = null;
		this.exports.hidden = !this.rows.length;
	}

	async ask(prompt, models, sampling, body) {
		const messages = models.map(() => ({ role: "assistant", content: "" }));
		const views = messages.map((message) => turn(message, "", []));
		body.append(h("tr", {}, h("th", { scope: "row" }, prompt), ...views.map((view, side) => h("td", { "data-model": models[side] }, view))));
		this.rows.push({ prompt, models, messages });
		const asked = settings.withSystem([{ role: "user", content: prompt }]);
		const answers = models.map((model, side) => write(views[side], messages[side], { model, messages: asked, sampling }, this.abort.signal));
		const ends = await Promise.all(answers);
		this.rows.at(-1).models = models.map((model, side) => ends[side]?.model ?? model);
	}

	export(form) {
		const rows = this.rows.map(({ prompt, models, messages }) => {
			const [left, right] = messages.map(({ content, error }) => (error ? `${content} [${error.sentence}]` : content));
			return { prompt, left_model: models[0], left, right_model: models[1], right };
		});
		const name = "lorachat-comparison";
		if (form === "JSON") download(`${name}.json`, JSON.stringify(rows, null, 2), "application/json");
		else if (form === "CSV") download(`${name}.csv`, csv(rows), "text/csv");
		else download(`${name}.md`, markdown(rows), "text/markdown");
	}
}

// A leading quotation mark keeps spreadsheets from reading a cell as a formula.
const cell = (text) => `"${(/^[=+@\t\r-]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

function csv(rows) {
	const names = Object.keys(rows[0]);
	return [names, ...rows.map((row) => names.map((name) => row[name]))].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

function markdown(rows) {
	const flat = (text) => text.replaceAll("|", "\\|").replaceAll("\n", "<br>");
	const lines = rows.map(({ prompt, left, right }) => `| ${[prompt, left, right].map(flat).join(" | ")} |`);
	return [`| prompt | ${flat(rows[0].left_model)} | ${flat(rows[0].right_model)} |`, "|---|---|---|", ...lines, ""].join("\n");
}
